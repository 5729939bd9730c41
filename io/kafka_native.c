/* Takes the messages of one partition out of librdkafka as columns of bytes, laid out as Arrow's.
 *
 * No Python object is made for a message, and the interpreter's lock is free while messages are
 * waited for and copied. What is used of librdkafka is its public interface
 * (https://github.com/confluentinc/librdkafka/blob/master/src/rdkafka.h); nothing is linked: bind()
 * finds the functions in the library that confluent-kafka has loaded.
 *
 * This library is also a plugin of librdkafka ("plugin.library.paths"): that is how it comes to know
 * the client that a Consumer of confluent-kafka holds, and when that client ends, without a look into
 * the Consumer. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORTED __attribute__((visibility("default")))

/* -- librdkafka's interface, as far as it is used ---------------------------------------------- */

typedef struct rd_kafka_s rd_kafka_t;
typedef struct rd_kafka_conf_s rd_kafka_conf_t;
typedef struct rd_kafka_queue_s rd_kafka_queue_t;
typedef struct rd_kafka_headers_s rd_kafka_headers_t;

typedef struct {
    int err;
    void *topic;
    int32_t partition;
    void *payload; /* an error's text, where err is set */
    size_t len;
    void *key;
    size_t key_len;
    int64_t offset;
    void *private_;
} rd_kafka_message_t;

typedef int on_new_t(rd_kafka_t *, const rd_kafka_conf_t *, void *, char *, size_t);
typedef int on_destroy_t(rd_kafka_t *, void *);

enum { NO_ERROR = 0, PARTITION_EOF = -191, FAIL = -196, TIME_NOT_AVAILABLE = 0 };

static struct {
    int (*conf_interceptor_add_on_new)(rd_kafka_conf_t *, const char *, on_new_t *, void *);
    int (*interceptor_add_on_destroy)(rd_kafka_t *, const char *, on_destroy_t *, void *);
    rd_kafka_queue_t *(*queue_get_partition)(rd_kafka_t *, const char *, int32_t);
    void (*queue_forward)(rd_kafka_queue_t *, rd_kafka_queue_t *);
    void (*queue_destroy)(rd_kafka_queue_t *);
    ssize_t (*consume_batch_queue)(rd_kafka_queue_t *, int, rd_kafka_message_t **, size_t);
    void (*message_destroy)(rd_kafka_message_t *);
    int64_t (*message_timestamp)(const rd_kafka_message_t *, int *);
    int (*message_headers)(const rd_kafka_message_t *, rd_kafka_headers_t **);
    int (*header_get_all)(
        const rd_kafka_headers_t *, size_t, const char **, const void **, size_t *);
} kafka;

static const struct {
    const char *name;
    void **at;
} FUNCTIONS[] = {
    {"rd_kafka_conf_interceptor_add_on_new", (void **)&kafka.conf_interceptor_add_on_new},
    {"rd_kafka_interceptor_add_on_destroy", (void **)&kafka.interceptor_add_on_destroy},
    {"rd_kafka_queue_get_partition", (void **)&kafka.queue_get_partition},
    {"rd_kafka_queue_forward", (void **)&kafka.queue_forward},
    {"rd_kafka_queue_destroy", (void **)&kafka.queue_destroy},
    {"rd_kafka_consume_batch_queue", (void **)&kafka.consume_batch_queue},
    {"rd_kafka_message_destroy", (void **)&kafka.message_destroy},
    {"rd_kafka_message_timestamp", (void **)&kafka.message_timestamp},
    {"rd_kafka_message_headers", (void **)&kafka.message_headers},
    {"rd_kafka_header_get_all", (void **)&kafka.header_get_all},
};

static PyObject *
bind(PyObject *module, PyObject *arguments)
{
    const char *path;
    if (!PyArg_ParseTuple(arguments, "s", &path))
        return NULL;
    void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (library == NULL)
        return PyErr_Format(PyExc_ImportError, "%s is not loaded", path);
    for (size_t i = 0; i < sizeof FUNCTIONS / sizeof *FUNCTIONS; i++) {
        void *found = dlsym(library, FUNCTIONS[i].name);
        if (found == NULL) {
            dlclose(library);
            return PyErr_Format(PyExc_ImportError, "%s has no %s", path, FUNCTIONS[i].name);
        }
        *FUNCTIONS[i].at = found;
    }
    Py_RETURN_NONE; /* the library stays open: the functions are used */
}

/* -- Clients: what a Consumer of confluent-kafka holds ------------------------------------------ */

static const char NAME[] = "velocity";

typedef struct {
    rd_kafka_t *rk; /* NULL once it has ended */
    int references; /* the client's own, and that of its capsule; atomic, for clients end anywhere */
} Client;

static __thread Client *newest; /* made in this thread, and not asked for yet */

static void
release(Client *client)
{
    if (__atomic_sub_fetch(&client->references, 1, __ATOMIC_ACQ_REL) == 0)
        free(client);
}

static int
on_destroy(rd_kafka_t *rk, void *opaque)
{
    Client *client = opaque;
    __atomic_store_n(&client->rk, NULL, __ATOMIC_RELEASE);
    release(client);
    return NO_ERROR;
}

static int
on_new(rd_kafka_t *rk, const rd_kafka_conf_t *conf, void *opaque, char *error, size_t size)
{
    Client *client = malloc(sizeof *client);
    if (client == NULL)
        return FAIL;
    client->rk = rk;
    client->references = 2;
    int refused = kafka.interceptor_add_on_destroy(rk, NAME, on_destroy, client);
    if (refused) {
        free(client);
        return refused;
    }
    if (newest != NULL)
        release(newest);
    newest = client;
    return NO_ERROR;
}

/* What librdkafka calls in a plugin for each configuration that names it. */
EXPORTED int
conf_init(rd_kafka_conf_t *conf, void **opaque, char *error, size_t size)
{
    if (kafka.conf_interceptor_add_on_new == NULL)
        return FAIL;
    return kafka.conf_interceptor_add_on_new(conf, NAME, on_new, NULL);
}

static void
release_capsule(PyObject *capsule)
{
    release(PyCapsule_GetPointer(capsule, NAME));
}

static PyObject *
made(PyObject *module, PyObject *unused)
{
    Client *client = newest;
    newest = NULL;
    if (client == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "librdkafka told of no new client in this thread");
        return NULL;
    }
    PyObject *capsule = PyCapsule_New(client, NAME, release_capsule);
    if (capsule == NULL)
        release(client);
    return capsule;
}

/* -- Columns ------------------------------------------------------------------------------------ */

/* Bytes of variable length: where each ends, the bytes, and which are there. */
typedef struct {
    PyObject *ends, *data, *valid;
    int32_t *end;
    char *at;
    unsigned char *bits;
    int64_t total;
    Py_ssize_t nulls, count;
} Binary;

static void *
buffer(PyObject **bytes, Py_ssize_t size)
{
    *bytes = PyBytes_FromStringAndSize(NULL, size);
    return *bytes == NULL ? NULL : PyBytes_AsString(*bytes);
}

static unsigned char *
bitmap(PyObject **bytes, Py_ssize_t count)
{
    unsigned char *bits = buffer(bytes, (count + 7) / 8);
    if (bits != NULL)
        memset(bits, 0, (count + 7) / 8);
    return bits;
}

static void
measure(Binary *column, const void *data, size_t size)
{
    column->count++;
    column->total += data == NULL ? 0 : (int64_t)size;
    column->nulls += data == NULL;
}

static int
allocate(Binary *column)
{
    column->end = buffer(&column->ends, (column->count + 1) * (Py_ssize_t)sizeof(int32_t));
    column->at = buffer(&column->data, (Py_ssize_t)column->total);
    if (column->nulls)
        column->bits = bitmap(&column->valid, column->count);
    if (column->end == NULL || column->at == NULL || (column->nulls && column->bits == NULL))
        return -1;
    column->end[0] = 0;
    column->count = 0;
    return 0;
}

static void
append(Binary *column, const void *data, size_t size)
{
    Py_ssize_t row = column->count++;
    if (data == NULL) {
        column->end[row + 1] = column->end[row];
        return;
    }
    if (size)
        memcpy(column->at, data, size);
    column->at += size;
    column->end[row + 1] = column->end[row] + (int32_t)size;
    if (column->bits != NULL)
        column->bits[row >> 3] |= (unsigned char)(1u << (row & 7));
}

static PyObject *
or_none(PyObject *object)
{
    return object == NULL ? Py_None : object;
}

/* (ends, data, valid), valid None where nothing is null. */
static PyObject *
triple(Binary *column)
{
    return PyTuple_Pack(3, column->ends, column->data, or_none(column->valid));
}

static void
forget(Binary *column)
{
    Py_CLEAR(column->ends);
    Py_CLEAR(column->data);
    Py_CLEAR(column->valid);
}

/* -- Queues ------------------------------------------------------------------------------------- */

#define CHUNK 500         /* messages asked for at once: between, their bytes are counted */
#define MOST_BYTES (16 << 20) /* of a batch, give or take a chunk */

typedef struct {
    PyObject_HEAD
    PyObject *client; /* the capsule */
    rd_kafka_queue_t *queue;
    rd_kafka_message_t **messages; /* those consumed and not given yet are the first */
    size_t held, room;
    int busy;
} Queue;

static rd_kafka_t *
client_of(PyObject *capsule)
{
    Client *client = PyCapsule_GetPointer(capsule, NAME);
    if (client == NULL)
        return NULL;
    rd_kafka_t *rk = __atomic_load_n(&client->rk, __ATOMIC_ACQUIRE);
    if (rk == NULL)
        PyErr_SetString(PyExc_RuntimeError, "the consumer has been closed");
    return rk;
}

static int
queue_init(PyObject *object, PyObject *arguments, PyObject *keywords)
{
    Queue *self = (Queue *)object;
    PyObject *capsule;
    const char *topic;
    int partition;
    if (!PyArg_ParseTuple(arguments, "Osi", &capsule, &topic, &partition))
        return -1;
    if (self->queue != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the queue is open");
        return -1;
    }
    rd_kafka_t *rk = client_of(capsule);
    if (rk == NULL)
        return -1;
    self->queue = kafka.queue_get_partition(rk, topic, partition);
    if (self->queue == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "librdkafka gives no queue of the partition");
        return -1;
    }
    kafka.queue_forward(self->queue, NULL);
    self->client = Py_NewRef(capsule);
    return 0;
}

/* Those before the first that is kept. */
static void
destroy_first(Queue *self, size_t count)
{
    for (size_t i = 0; i < count; i++)
        kafka.message_destroy(self->messages[i]);
    self->held -= count;
    memmove(self->messages, self->messages + count, self->held * sizeof *self->messages);
}

static void
close_queue(Queue *self)
{
    destroy_first(self, self->held);
    free(self->messages);
    self->messages = NULL;
    self->room = 0;
    if (self->queue != NULL)
        kafka.queue_destroy(self->queue);
    self->queue = NULL;
    Py_CLEAR(self->client);
}

static void
queue_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    close_queue((Queue *)object);
    freefunc release_memory = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release_memory(object);
    Py_DECREF(type);
}

static int
is_busy(Queue *self)
{
    if (self->busy)
        PyErr_SetString(PyExc_RuntimeError, "the queue is in use by another thread");
    return self->busy;
}

static PyObject *
queue_close(PyObject *object, PyObject *unused)
{
    if (is_busy((Queue *)object))
        return NULL;
    close_queue((Queue *)object);
    Py_RETURN_NONE;
}

static int64_t
milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Waits until so many messages are held, or bytes, or the time is over. Runs without Python's lock. */
static void
wait_for(Queue *self, size_t most, int timeout)
{
    int64_t until = milliseconds() + timeout, bytes = 0, left = timeout;
    while (self->held < most && bytes < MOST_BYTES) {
        size_t wanted = most - self->held < CHUNK ? most - self->held : CHUNK;
        ssize_t got = kafka.consume_batch_queue(
            self->queue, (int)left, self->messages + self->held, wanted);
        if (got < 0)
            got = 0;
        for (size_t i = self->held; i < self->held + (size_t)got; i++)
            bytes += (int64_t)(self->messages[i]->len + self->messages[i]->key_len);
        self->held += (size_t)got;
        left = until - milliseconds();
        if (left <= 0) {
            if ((size_t)got < wanted)
                break;
            left = 0; /* what is there already is taken still */
        }
    }
}

typedef struct {
    size_t taken;        /* messages and events, from the first that is held */
    Py_ssize_t count;    /* of messages */
    int64_t position;    /* after them; -1: not told */
    size_t failure;      /* index of the error that ends them, or taken */
    Py_ssize_t untimed, headed;
    Binary keys, values, names, contents;
} Batch;

static rd_kafka_headers_t *
headers_of(const rd_kafka_message_t *message)
{
    rd_kafka_headers_t *headers = NULL;
    return kafka.message_headers(message, &headers) == NO_ERROR ? headers : NULL;
}

/* Finds how far the batch goes, and how large it is. Runs without Python's lock. */
static void
scan(Queue *self, Batch *batch, size_t most)
{
    batch->position = -1;
    size_t i = 0;
    for (; i < self->held && i < most; i++) {
        rd_kafka_message_t *message = self->messages[i];
        if (message->err == PARTITION_EOF) {
            if (message->offset > batch->position)
                batch->position = message->offset;
            continue;
        }
        if (message->err != NO_ERROR) {
            batch->failure = i;
            batch->taken = i + 1;
            return;
        }
        if (batch->count
            && (batch->values.total + (int64_t)message->len > INT32_MAX
                || batch->keys.total + (int64_t)message->key_len > INT32_MAX))
            break;
        rd_kafka_headers_t *headers = headers_of(message);
        if (headers != NULL) {
            const char *name;
            const void *content;
            size_t size;
            int64_t total = batch->contents.total;
            for (size_t h = 0; !kafka.header_get_all(headers, h, &name, &content, &size); h++)
                total += content == NULL ? 0 : (int64_t)size;
            if (batch->count && total > INT32_MAX)
                break;
            for (size_t h = 0; !kafka.header_get_all(headers, h, &name, &content, &size); h++) {
                measure(&batch->names, name, strlen(name));
                measure(&batch->contents, content, size);
            }
            batch->headed++;
        }
        measure(&batch->values, message->payload, message->len);
        measure(&batch->keys, message->key, message->key_len);
        int kind;
        kafka.message_timestamp(message, &kind);
        batch->untimed += kind == TIME_NOT_AVAILABLE;
        batch->count++;
        batch->position = message->offset + 1;
    }
    batch->failure = batch->taken = i;
}

/* (offsets, times, times' validity, keys, values, headers): bytes, triples, None for nothing; the
 * headers are (ends, valid, names, contents). */
static PyObject *
columns(Queue *self, Batch *batch)
{
    PyObject *offsets = NULL, *times = NULL, *timed = NULL, *lists = NULL, *headed = NULL;
    PyObject *keys = NULL, *values = NULL, *names = NULL, *contents = NULL, *headers = NULL;
    PyObject *made_of = NULL;
    Py_ssize_t count = batch->count;
    int64_t *offset = buffer(&offsets, count * (Py_ssize_t)sizeof *offset);
    int64_t *time = buffer(&times, count * (Py_ssize_t)sizeof *time);
    unsigned char *timed_bits = batch->untimed ? bitmap(&timed, count) : NULL;
    int has_keys = batch->keys.nulls < count, has_headers = batch->headed > 0;
    int32_t *list = NULL;
    unsigned char *headed_bits = NULL;
    if (offset == NULL || time == NULL || (batch->untimed && timed_bits == NULL)
        || allocate(&batch->values) || (has_keys && allocate(&batch->keys)))
        goto end;
    if (has_headers) {
        list = buffer(&lists, (count + 1) * (Py_ssize_t)sizeof *list);
        headed_bits = bitmap(&headed, count);
        if (list == NULL || headed_bits == NULL || allocate(&batch->names)
            || allocate(&batch->contents))
            goto end;
        list[0] = 0;
    }

    Py_BEGIN_ALLOW_THREADS
    Py_ssize_t row = 0;
    for (size_t i = 0; row < count; i++) {
        rd_kafka_message_t *message = self->messages[i];
        if (message->err != NO_ERROR)
            continue;
        int kind;
        offset[row] = message->offset;
        time[row] = kafka.message_timestamp(message, &kind);
        if (timed_bits != NULL && kind != TIME_NOT_AVAILABLE)
            timed_bits[row >> 3] |= (unsigned char)(1u << (row & 7));
        append(&batch->values, message->payload, message->len);
        if (has_keys)
            append(&batch->keys, message->key, message->key_len);
        if (has_headers) {
            rd_kafka_headers_t *given = headers_of(message);
            if (given != NULL) {
                const char *name;
                const void *content;
                size_t size;
                headed_bits[row >> 3] |= (unsigned char)(1u << (row & 7));
                for (size_t h = 0; !kafka.header_get_all(given, h, &name, &content, &size); h++) {
                    append(&batch->names, name, strlen(name));
                    append(&batch->contents, content, size);
                }
            }
            list[row + 1] = (int32_t)batch->names.count;
        }
        row++;
    }
    Py_END_ALLOW_THREADS

    values = triple(&batch->values);
    keys = has_keys ? triple(&batch->keys) : Py_NewRef(Py_None);
    if (has_headers) {
        names = triple(&batch->names);
        contents = triple(&batch->contents);
        if (names != NULL && contents != NULL)
            headers = PyTuple_Pack(4, lists, headed, names, contents);
    } else
        headers = Py_NewRef(Py_None);
    if (values != NULL && keys != NULL && headers != NULL)
        made_of = PyTuple_Pack(6, offsets, times, or_none(timed), keys, values, headers);
end:
    Py_XDECREF(offsets);
    Py_XDECREF(times);
    Py_XDECREF(timed);
    Py_XDECREF(lists);
    Py_XDECREF(headed);
    Py_XDECREF(keys);
    Py_XDECREF(values);
    Py_XDECREF(names);
    Py_XDECREF(contents);
    Py_XDECREF(headers);
    forget(&batch->keys);
    forget(&batch->values);
    forget(&batch->names);
    forget(&batch->contents);
    return made_of;
}

static PyObject *
failure_of(const rd_kafka_message_t *message)
{
    const char *text = message->payload == NULL ? "" : message->payload;
    PyObject *reason = PyUnicode_DecodeUTF8(
        text, (Py_ssize_t)(message->payload == NULL ? 0 : message->len), "replace");
    if (reason == NULL)
        return NULL;
    return Py_BuildValue("(iN)", message->err, reason);
}

static PyObject *
poll_batch(Queue *self, size_t most, int timeout)
{
    Batch batch;
    memset(&batch, 0, sizeof batch);
    Py_BEGIN_ALLOW_THREADS
    wait_for(self, most, timeout);
    scan(self, &batch, most);
    Py_END_ALLOW_THREADS

    PyObject *given = batch.count ? columns(self, &batch) : Py_NewRef(Py_None);
    PyObject *failure = batch.failure < batch.taken ? failure_of(self->messages[batch.failure])
                                                    : Py_NewRef(Py_None);
    if (given == NULL || failure == NULL) { /* no memory: what is held is given another time */
        Py_XDECREF(given);
        Py_XDECREF(failure);
        return NULL;
    }
    Py_ssize_t events = (Py_ssize_t)batch.taken;
    Py_BEGIN_ALLOW_THREADS
    destroy_first(self, batch.taken);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("(nnLNN)", events, batch.count, (long long)batch.position, given, failure);
}

static PyObject *
queue_poll(PyObject *object, PyObject *arguments)
{
    Queue *self = (Queue *)object;
    Py_ssize_t most;
    int timeout;
    if (!PyArg_ParseTuple(arguments, "ni", &most, &timeout))
        return NULL;
    if (most < 1 || timeout < 0) {
        PyErr_SetString(PyExc_ValueError, "most must be 1 or more, and timeout not negative");
        return NULL;
    }
    if (is_busy(self))
        return NULL;
    if (self->queue == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the queue is closed");
        return NULL;
    }
    if (client_of(self->client) == NULL)
        return NULL;
    if (self->room < (size_t)most) {
        void *larger = realloc(self->messages, (size_t)most * sizeof *self->messages);
        if (larger == NULL)
            return PyErr_NoMemory();
        self->messages = larger;
        self->room = (size_t)most;
    }
    self->busy = 1;
    PyObject *polled = poll_batch(self, (size_t)most, timeout);
    self->busy = 0;
    return polled;
}

static PyMethodDef queue_methods[] = {
    {"poll", queue_poll, METH_VARARGS, NULL},
    {"close", queue_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot queue_slots[] = {
    {Py_tp_init, queue_init},
    {Py_tp_dealloc, queue_dealloc},
    {Py_tp_methods, queue_methods},
    {0, NULL},
};

static PyType_Spec queue_spec = {
    .name = "velocity.io.kafka_native.Queue",
    .basicsize = sizeof(Queue),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = queue_slots,
};

static PyMethodDef functions[] = {
    {"bind", bind, METH_VARARGS, NULL},
    {"made", made, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "velocity.io.kafka_native", NULL, -1, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit_kafka_native(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *type = module == NULL ? NULL : PyType_FromSpec(&queue_spec);
    if (type == NULL || PyModule_AddObjectRef(module, "Queue", type) < 0)
        Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}
