"""What a metric's own ids begin with, which tells them from those of other metrics."""

import string


def begin_of(template: str, job: str, metric: str) -> str:
    """What a template's ids begin with, as far as it is one.

    >>> begin_of("{job}/x-{city}", "orders", "m"), begin_of("{city", "orders", "m")
    ('orders/x-', '')
    """
    begin = ""
    try:
        for text, name, _, _ in string.Formatter().parse(template):
            begin += text
            if name not in (None, "job", "metric"):
                break
            begin += {"job": job, "metric": metric}.get(name or "", "")
    except ValueError:
        pass  # said elsewhere
    return begin


def alike(one: str, other: str) -> bool:
    """Whether ids that begin so might be equal.

    >>> alike("order-", "order/"), alike("order", "order-")
    (False, True)
    """
    return one.startswith(other) or other.startswith(one)
