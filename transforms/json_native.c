/* Reads JSON objects that are written plainly into columns, laid out as Arrow's.
 *
 * What is plain is a part of RFC 8259 that leaves nothing to interpret: see plain() and the functions
 * that it calls. An object that is anything else, or not JSON at all, is left to the caller, which knows
 * how to read it or what is wrong with it. So to refuse is always right here, and to take must be.
 *
 * No Python object is made for an object or a value, and the interpreter's lock is free meanwhile. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <errno.h>
#include <float.h>
#include <locale.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __APPLE__
#include <xlocale.h>
#endif

/* Longer numbers, and powers of ten near the end of a double's, are Arrow's to judge: it refuses some. */
enum { DEPTH = 64, DIGITS = 18, LONGEST_NUMBER = 64, GREATEST_EXPONENT = 300 };

typedef enum { STRING, INT64, DOUBLE, BOOL, TIMESTAMP, DECIMAL } Kind;

static const struct {
    const char *name;
    Kind kind;
    int width; /* bytes of a value; 0: ends and bytes, or bits */
} KINDS[] = {
    {"string", STRING, 0},       {"int64", INT64, 8},         {"double", DOUBLE, 8},
    {"bool", BOOL, 0},           {"timestamp", TIMESTAMP, 8}, {"timestamp_ms", INT64, 8},
    {"decimal", DECIMAL, 16},
};

typedef struct {
    const char *name; /* of a bytes object that the caller holds */
    size_t length;
    Kind kind;
    int width, precision, scale;
    int64_t seen; /* the number of the last text that had it, from 1 */
    int64_t nulls;
    PyObject *valid_bytes, *fixed_bytes; /* the buffers that grow no more; strings' ends are fixed ones */
    uint8_t *valid, *fixed;
    char *data; /* of strings */
    size_t used, room;
} Column;

typedef struct {
    const uint8_t *at, *end;
} Cursor;

static locale_t c_locale;

/* -- Tokens; each function tells whether it found one, and is then behind it ---------------------- */

static void
skip_space(Cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\r' || *c->at == '\t'))
        c->at++;
}

static bool
take(Cursor *c, uint8_t wanted)
{
    if (c->at == c->end || *c->at != wanted)
        return false;
    c->at++;
    return true;
}

static bool
take_word(Cursor *c, const char *word, size_t length)
{
    if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0)
        return false;
    c->at += length;
    return true;
}

/* To the first byte that a string does not have as it is, by eight bytes at a time: a quote, a backslash,
 * a control character, or one that is not ASCII. */
static const uint8_t *
simple_run(const uint8_t *at, const uint8_t *end)
{
    const uint64_t ones = UINT64_C(0x0101010101010101), highs = ones << 7;
    for (; end - at >= 8; at += 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        uint64_t quote = word ^ (ones * '"'), backslash = word ^ (ones * '\\');
        uint64_t found = ((quote - ones) & ~quote) | ((backslash - ones) & ~backslash) |
                         ((word - ones * 0x20) & ~word) | word;
        if (found & highs)
            break;
    }
    while (at < end && *at >= 0x20 && *at < 0x80 && *at != '"' && *at != '\\')
        at++;
    return at;
}

/* RFC 3629: no overlong forms, no surrogates, nothing beyond U+10FFFF. */
static bool
is_utf8(const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        uint8_t lead = *at++;
        if (lead < 0x80)
            continue;
        int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
        if (lead < 0xc2 || lead > 0xf4 || end - at < more)
            return false;
        if ((lead == 0xe0 && *at < 0xa0) || (lead == 0xed && *at > 0x9f) ||
            (lead == 0xf0 && *at < 0x90) || (lead == 0xf4 && *at > 0x8f))
            return false;
        for (; more > 0; more--, at++)
            if ((*at & 0xc0) != 0x80)
                return false;
    }
    return true;
}

static int
hex(uint8_t digit)
{
    return digit >= '0' && digit <= '9'   ? digit - '0'
           : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
           : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
                                          : -1;
}

static int
code_unit(const uint8_t *at, const uint8_t *end)
{
    int code = 0;
    if (end - at < 6 || at[0] != '\\' || at[1] != 'u')
        return -1;
    for (int i = 2; i < 6; i++) {
        int digit = hex(at[i]);
        if (digit < 0)
            return -1;
        code = code * 16 + digit;
    }
    return code;
}

/* The character of the \uXXXX, or of the two of a surrogate pair, that begin here, and how long that is
 * written; -1 if it is none, or half of a pair. */
static int
unicode_escape(const uint8_t *at, const uint8_t *end, int *length)
{
    int code = code_unit(at, end);
    *length = 6;
    if (code < 0xd800 || code > 0xdfff)
        return code;
    int low = code_unit(at + 6, end);
    *length = 12;
    if (code > 0xdbff || low < 0xdc00 || low > 0xdfff)
        return -1;
    return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
}

typedef struct {
    const uint8_t *start, *stop;
    bool escaped;
} Text;

static bool
take_text(Cursor *c, Text *text)
{
    if (!take(c, '"'))
        return false;
    bool ascii = true;
    text->start = c->at;
    text->escaped = false;
    for (const uint8_t *at = c->at;;) {
        at = simple_run(at, c->end);
        if (at == c->end)
            return false;
        if (*at == '"') {
            text->stop = at;
            c->at = at + 1;
            return ascii || is_utf8(text->start, at);
        }
        if (*at >= 0x80) {
            ascii = false;
            at++;
        } else if (*at == '\\' && c->end - at >= 2) {
            int length = 2;
            text->escaped = true;
            if (at[1] == 'u' ? unicode_escape(at, c->end, &length) < 0
                             : at[1] == 0 || strchr("\"\\/bfnrt", at[1]) == NULL)
                return false;
            at += length;
        } else {
            return false;
        }
    }
}

/* Writes what a text means; never more bytes than it is written with. Gives their number. */
static size_t
unescape(const Text *text, char *to)
{
    char *out = to;
    for (const uint8_t *at = text->start; at < text->stop;) {
        if (*at != '\\') {
            *out++ = (char)*at++;
            continue;
        }
        if (at[1] != 'u') {
            static const char from[] = "bfnrt", meant[] = "\b\f\n\r\t";
            const char *found = strchr(from, at[1]);
            *out++ = found ? meant[found - from] : (char)at[1];
            at += 2;
            continue;
        }
        int length, code = unicode_escape(at, text->stop, &length);
        if (code < 0x80) {
            *out++ = (char)code;
        } else if (code < 0x800) {
            *out++ = (char)(0xc0 | code >> 6);
            *out++ = (char)(0x80 | (code & 0x3f));
        } else {
            if (code < 0x10000) {
                *out++ = (char)(0xe0 | code >> 12);
            } else {
                *out++ = (char)(0xf0 | code >> 18);
                *out++ = (char)(0x80 | (code >> 12 & 0x3f));
            }
            *out++ = (char)(0x80 | (code >> 6 & 0x3f));
            *out++ = (char)(0x80 | (code & 0x3f));
        }
        at += length;
    }
    return (size_t)(out - to);
}

typedef struct {
    const uint8_t *start, *stop;
    bool negative, exponential;
    uint64_t value; /* of all digits, as if there were no point; if `digits` is at most DIGITS */
    int digits;     /* without leading zeros */
    int fraction;   /* digits after the point */
    int exponent;
} Number;

static bool
is_digit(const Cursor *c)
{
    return c->at < c->end && *c->at >= '0' && *c->at <= '9';
}

static void
take_digits(Cursor *c, Number *number)
{
    for (; is_digit(c); c->at++) {
        if (number->digits < DIGITS)
            number->value = number->value * 10 + (uint64_t)(*c->at - '0');
        if (number->value || number->digits)
            number->digits++;
    }
}

static bool
take_number(Cursor *c, Number *number)
{
    *number = (Number){.start = c->at};
    number->negative = take(c, '-');
    if (!is_digit(c))
        return false;
    if (*c->at == '0')
        c->at++; /* no digit may follow: then what comes next is no token */
    else
        take_digits(c, number);
    if (take(c, '.')) {
        if (!is_digit(c))
            return false;
        const uint8_t *point = c->at;
        take_digits(c, number);
        number->fraction = (int)(c->at - point);
    }
    if (c->at < c->end && (*c->at == 'e' || *c->at == 'E')) {
        number->exponential = true;
        c->at++;
        bool negative = take(c, '-');
        if (!negative)
            take(c, '+');
        if (!is_digit(c))
            return false;
        for (; is_digit(c); c->at++) {
            number->exponent = number->exponent * 10 + (*c->at - '0');
            if (number->exponent > GREATEST_EXPONENT)
                return false;
        }
        if (negative)
            number->exponent = -number->exponent;
    }
    number->stop = c->at;
    return number->stop - number->start <= LONGEST_NUMBER;
}

/* A member's name and the colon, up to its value. */
static bool
take_name(Cursor *c, Text *name)
{
    skip_space(c);
    if (!take_text(c, name))
        return false;
    skip_space(c);
    if (!take(c, ':'))
        return false;
    skip_space(c);
    return true;
}

static bool
skip_value(Cursor *c, int depth)
{
    Text text;
    Number number;
    if (c->at == c->end || depth > DEPTH)
        return false;
    switch (*c->at) {
    case '"':
        return take_text(c, &text);
    case 't':
        return take_word(c, "true", 4);
    case 'f':
        return take_word(c, "false", 5);
    case 'n':
        return take_word(c, "null", 4);
    case '[':
    case '{': {
        bool object = *c->at++ == '{';
        uint8_t close = object ? '}' : ']';
        skip_space(c);
        if (take(c, close))
            return true;
        do {
            skip_space(c);
            if (object && !take_name(c, &text))
                return false;
            if (!skip_value(c, depth + 1))
                return false;
            skip_space(c);
        } while (take(c, ','));
        return take(c, close);
    }
    default:
        return take_number(c, &number);
    }
}

/* -- Values of a field's type --------------------------------------------------------------------- */

static bool
to_int64(const Number *number, int64_t *value)
{
    if (number->fraction || number->exponential || number->digits > DIGITS)
        return false;
    if (number->negative && number->value == 0)
        return false;
    *value = number->negative ? -(int64_t)number->value : (int64_t)number->value;
    return true;
}

/* The nearest double. Up to 2**53 and up to 10**22 both are exact, and one operation rounds once (Clinger,
 * How to Read Floating Point Numbers Accurately, 1990); beyond, the C library rounds as well. */
static bool
to_double(const Number *number, double *value)
{
    static const double powers[] = {
        1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
        1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
    };
    int power = number->exponent - number->fraction;
    if (FLT_EVAL_METHOD == 0 && number->digits <= 15 && power >= -22 && power <= 22) {
        double digits = (double)number->value;
        *value = power < 0 ? digits / powers[-power] : digits * powers[power];
        if (number->negative)
            *value = -*value;
        return true;
    }
    char text[LONGEST_NUMBER + 1];
    size_t length = (size_t)(number->stop - number->start);
    memcpy(text, number->start, length);
    text[length] = 0;
    errno = 0;
    *value = strtod_l(text, NULL, c_locale);
    return errno == 0 && isfinite(*value);
}

static bool
to_decimal(const Number *number, const Column *column, __int128 *value)
{
    int shift = column->scale - number->fraction;
    if (number->exponential || number->digits > DIGITS || shift < 0)
        return false;
    if (number->value && number->digits + shift > column->precision)
        return false;
    *value = number->negative ? -(__int128)number->value : (__int128)number->value;
    for (; shift > 0 && number->value; shift--)
        *value *= 10;
    return true;
}

static bool
two_digits(const uint8_t *at, int most, int *value)
{
    if (at[0] < '0' || at[0] > '9' || at[1] < '0' || at[1] > '9')
        return false;
    *value = (at[0] - '0') * 10 + at[1] - '0';
    return *value <= most;
}

/* Days since 1970-01-01: era, year of era and day of year with years that begin in March (Howard Hinnant,
 * chrono-Compatible Low-Level Date Algorithms). */
static int64_t
days(int64_t year, int month, int day)
{
    year -= month <= 2;
    int64_t era = year / 400, of_era = year - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

/* YYYY-MM-DDTHH:MM:SS, a fraction of 1 to 9 digits or none, Z or +HH:MM or -HH:MM or nothing, which is
 * UTC (RFC 3339). To milliseconds; what is finer is cut off. */
static bool
to_millis(const Text *text, int64_t *millis)
{
    const uint8_t *at = text->start, *end = text->stop;
    int century, year, month, day, hour, minute, second;
    if (text->escaped || end - at < 19)
        return false;
    if (at[4] != '-' || at[7] != '-' || at[10] != 'T' || at[13] != ':' || at[16] != ':')
        return false;
    if (!two_digits(at, 99, &century) || !two_digits(at + 2, 99, &year) ||
        !two_digits(at + 5, 12, &month) || !two_digits(at + 8, 31, &day) ||
        !two_digits(at + 11, 23, &hour) || !two_digits(at + 14, 59, &minute) ||
        !two_digits(at + 17, 59, &second))
        return false;
    year += century * 100;
    if (year < 1678 || year > 2261 || month == 0 || day == 0)
        return false;
    static const int lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > lengths[month - 1] + (month == 2 && leap))
        return false;
    at += 19;
    int fraction = 0;
    if (at < end && *at == '.') {
        int digits = 0;
        for (at++; at < end && *at >= '0' && *at <= '9'; at++, digits++)
            if (digits < 3)
                fraction = fraction * 10 + *at - '0';
        if (digits < 1 || digits > 9)
            return false;
        for (; digits < 3; digits++)
            fraction *= 10;
    }
    int offset = 0; /* minutes */
    if (end - at == 6 && (*at == '+' || *at == '-')) {
        int hours, minutes;
        if (at[3] != ':' || !two_digits(at + 1, 23, &hours) || !two_digits(at + 4, 59, &minutes))
            return false;
        offset = (hours * 60 + minutes) * (*at == '-' ? -1 : 1);
    } else if (!(end - at == 1 && *at == 'Z') && at != end) {
        return false;
    }
    int64_t of_day = (hour * 60 + minute - offset) * INT64_C(60) + second;
    *millis = (days(year, month, day) * 86400 + of_day) * 1000 + fraction;
    return true;
}

/* -- Columns ----------------------------------------------------------------------------------------- */

static void
set_bit(uint8_t *bits, int64_t at)
{
    bits[at >> 3] |= (uint8_t)(1 << (at & 7));
}

typedef enum { TAKEN, REFUSED, NO_MEMORY } Outcome;

static Outcome
put_text(Column *column, const Text *text)
{
    size_t length = (size_t)(text->stop - text->start);
    if (column->data == NULL || column->room - column->used < length) {
        size_t room = 2 * column->room + length + 4096;
        char *data = realloc(column->data, room);
        if (data == NULL)
            return NO_MEMORY;
        column->data = data;
        column->room = room;
    }
    char *to = column->data + column->used;
    if (text->escaped)
        length = unescape(text, to);
    else
        memcpy(to, text->start, length);
    column->used += length;
    return TAKEN;
}

/* Takes a value that is not null. */
static Outcome
put(Column *column, Cursor *c, int64_t row)
{
    Text text;
    Number number;
    union {
        int64_t whole;
        double real;
        __int128 decimal;
    } value;
    bool taken = false;
    switch (column->kind) {
    case STRING:
        return take_text(c, &text) ? put_text(column, &text) : REFUSED;
    case INT64:
        taken = take_number(c, &number) && to_int64(&number, &value.whole);
        break;
    case DOUBLE:
        taken = take_number(c, &number) && to_double(&number, &value.real);
        break;
    case BOOL:
        if (!take_word(c, "true", 4))
            return take_word(c, "false", 5) ? TAKEN : REFUSED;
        set_bit(column->fixed, row);
        return TAKEN;
    case TIMESTAMP:
        taken = take_text(c, &text) && to_millis(&text, &value.whole);
        break;
    case DECIMAL: { /* also between quotes: many write money so */
        bool quoted = take(c, '"');
        taken = take_number(c, &number) && to_decimal(&number, column, &value.decimal) &&
                (!quoted || take(c, '"'));
        break;
    }
    }
    if (!taken)
        return REFUSED;
    memcpy(column->fixed + row * column->width, &value, (size_t)column->width);
    return TAKEN;
}

/* Which field has this name: mostly the one behind that which was found before. */
static Column *
named(Column *columns, int count, int *next, const Text *name)
{
    size_t length = (size_t)(name->stop - name->start);
    for (int i = 0; i < count; i++) {
        int at = *next + i < count ? *next + i : *next + i - count;
        Column *column = columns + at;
        if (column->length == length && memcmp(column->name, name->start, length) == 0) {
            *next = at + 1 < count ? at + 1 : 0;
            return column;
        }
    }
    return NULL;
}

/* One object of at least one member, with nothing before it and only white space after; names without
 * escapes, no declared name twice; values as the functions above take them. */
static Outcome
plain(Cursor *c, Column *columns, int count, int64_t number, int64_t row)
{
    int next = 0;
    if (!take(c, '{'))
        return REFUSED;
    do {
        Text name;
        if (!take_name(c, &name) || name.escaped)
            return REFUSED;
        Column *column = named(columns, count, &next, &name);
        if (column == NULL) {
            if (!skip_value(c, 0))
                return REFUSED;
        } else {
            if (column->seen == number)
                return REFUSED;
            column->seen = number;
            if (c->at < c->end && *c->at == 'n') {
                if (!take_word(c, "null", 4))
                    return REFUSED;
            } else {
                Outcome outcome = put(column, c, row);
                if (outcome != TAKEN)
                    return outcome;
                set_bit(column->valid, row);
            }
        }
        skip_space(c);
    } while (take(c, ','));
    if (!take(c, '}'))
        return REFUSED;
    skip_space(c);
    return c->at == c->end ? TAKEN : REFUSED;
}

/* Ends a row, or takes back what an object had put in before it was refused. */
static void
end_row(Column *columns, int count, int64_t number, int64_t row, bool taken)
{
    uint8_t bit = (uint8_t)(1 << (row & 7));
    for (Column *column = columns; column < columns + count; column++) {
        int32_t *ends = (int32_t *)column->fixed;
        if (taken) {
            column->nulls += !(column->valid[row >> 3] & bit);
            if (column->kind == STRING)
                ends[row + 1] = (int32_t)column->used;
        } else if (column->seen == number) {
            column->valid[row >> 3] &= (uint8_t)~bit;
            if (column->kind == STRING)
                column->used = (size_t)ends[row];
            if (column->kind == BOOL)
                column->fixed[row >> 3] &= (uint8_t)~bit;
        }
    }
}

typedef struct {
    Py_buffer valid, ends, data;
    Py_ssize_t first, count, most;
} Texts;

/* The number of rows; -1 if there is no memory. `left` becomes the positions of the other texts. */
static int64_t
read_all(const Texts *texts, Column *columns, int count, int64_t *left, Py_ssize_t *lefts)
{
    const int32_t *ends = (const int32_t *)texts->ends.buf + texts->first;
    const uint8_t *data = texts->data.buf, *valid = texts->valid.buf;
    int64_t row = 0;
    for (Py_ssize_t i = 0; i < texts->count; i++) {
        Py_ssize_t bit = texts->first + i;
        Outcome outcome = REFUSED;
        if ((texts->valid.len == 0 || valid[bit >> 3] & (1 << (bit & 7))) &&
            ends[i + 1] - ends[i] <= texts->most) {
            Cursor cursor = {data + ends[i], data + ends[i + 1]};
            outcome = plain(&cursor, columns, count, i + 1, row);
        }
        if (outcome == NO_MEMORY)
            return -1;
        end_row(columns, count, i + 1, row, outcome == TAKEN);
        if (outcome == TAKEN)
            row++;
        else
            left[(*lefts)++] = i;
    }
    return row;
}

/* -- Python's side --------------------------------------------------------------------------------- */

static PyObject *
zeros(Py_ssize_t size)
{
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, size);
    if (bytes != NULL)
        memset(PyBytes_AsString(bytes), 0, (size_t)size);
    return bytes;
}

static bool
begin(Column *column, PyObject *field, Py_ssize_t rows)
{
    const char *type;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(
            field, "y#sii", &column->name, &length, &type, &column->precision, &column->scale))
        return false;
    column->length = (size_t)length;
    size_t kind = 0;
    while (kind < sizeof KINDS / sizeof *KINDS && strcmp(KINDS[kind].name, type) != 0)
        kind++;
    if (kind == sizeof KINDS / sizeof *KINDS) {
        PyErr_Format(PyExc_ValueError, "no such type: %s", type);
        return false;
    }
    column->kind = KINDS[kind].kind;
    column->width = KINDS[kind].width;
    Py_ssize_t bits = rows / 8 + 1;
    Py_ssize_t fixed = column->kind == STRING ? (rows + 1) * (Py_ssize_t)sizeof(int32_t)
                       : column->kind == BOOL ? bits
                                              : rows * column->width;
    column->valid_bytes = zeros(bits);
    column->fixed_bytes = zeros(fixed);
    if (column->valid_bytes == NULL || column->fixed_bytes == NULL)
        return false;
    column->valid = (uint8_t *)PyBytes_AsString(column->valid_bytes);
    column->fixed = (uint8_t *)PyBytes_AsString(column->fixed_bytes);
    return true;
}

static PyObject *
end(const Column *column)
{
    if (column->kind != STRING)
        return Py_BuildValue("nOO", (Py_ssize_t)column->nulls, column->valid_bytes, column->fixed_bytes);
    return Py_BuildValue(
        "nOOy#", (Py_ssize_t)column->nulls, column->valid_bytes, column->fixed_bytes,
        column->used ? column->data : "", (Py_ssize_t)column->used);
}

static bool
is_sound(const Texts *texts)
{
    if (texts->first < 0 || texts->count < 0 || texts->count > PY_SSIZE_T_MAX - texts->first)
        return false;
    Py_ssize_t last = texts->first + texts->count;
    if ((texts->valid.len && texts->valid.len < last / 8 + (last % 8 != 0)) ||
        texts->ends.len / (Py_ssize_t)sizeof(int32_t) <= last)
        return false;
    const int32_t *ends = texts->ends.buf;
    for (Py_ssize_t i = texts->first; i < last; i++)
        if (ends[i] < 0 || ends[i] > ends[i + 1])
            return false;
    return ends[last] <= texts->data.len;
}

static PyObject *
read_columns(PyObject *module, PyObject *arguments)
{
    PyObject *fields, *found = NULL, *result = NULL;
    Texts texts;
    if (!PyArg_ParseTuple(
            arguments, "O!y*y*y*nnn", &PyTuple_Type, &fields, &texts.valid, &texts.ends, &texts.data,
            &texts.first, &texts.count, &texts.most))
        return NULL;
    int count = (int)PyTuple_Size(fields);
    Column *columns = NULL;
    int64_t *left = NULL, rows = 0;
    Py_ssize_t lefts = 0;
    if (!is_sound(&texts)) {
        PyErr_SetString(PyExc_ValueError, "the buffers are not those of an array of binaries");
        goto done;
    }
    columns = calloc((size_t)count + 1, sizeof *columns);
    left = malloc(((size_t)texts.count + 1) * sizeof *left);
    if (columns == NULL || left == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (int i = 0; i < count; i++)
        if (!begin(columns + i, PyTuple_GetItem(fields, i), texts.count))
            goto done;
    Py_BEGIN_ALLOW_THREADS
    rows = read_all(&texts, columns, count, left, &lefts);
    Py_END_ALLOW_THREADS
    if (rows < 0) {
        PyErr_NoMemory();
        goto done;
    }
    found = PyTuple_New(count);
    for (int i = 0; found != NULL && i < count; i++) {
        PyObject *column = end(columns + i);
        if (column == NULL || PyTuple_SetItem(found, i, column) < 0)
            Py_CLEAR(found);
    }
    if (found != NULL)
        result = Py_BuildValue(
            "nNy#", (Py_ssize_t)rows, found, (const char *)left, lefts * (Py_ssize_t)sizeof *left);
done:
    for (int i = 0; columns != NULL && i < count; i++) {
        Py_XDECREF(columns[i].valid_bytes);
        Py_XDECREF(columns[i].fixed_bytes);
        free(columns[i].data);
    }
    free(columns);
    free(left);
    PyBuffer_Release(&texts.valid);
    PyBuffer_Release(&texts.ends);
    PyBuffer_Release(&texts.data);
    return result;
}

static PyMethodDef functions[] = {
    {"read", read_columns, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "json_native", .m_size = -1, .m_methods = functions,
};

PyMODINIT_FUNC
PyInit_json_native(void)
{
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (c_locale == (locale_t)0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyModule_Create(&definition);
}
