"""What the service counts, in Prometheus' terms. No label holds anything that a request can choose."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
POSTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One registry per service, so that two services in a process count apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        to = self.registry
        self.seconds = Histogram(
            "xhs_request_seconds", "From the first byte of a request to its answer.", ["route", "status"], buckets=SECONDS, registry=to
        )  # fmt: skip
        self.decisions = Counter("xhs_decisions", "Decisions made and logged.", ["verdict", "category"], registry=to)
        self.escalations = Counter("xhs_escalations", "Of these, left to a person.", ["reason"], registry=to)
        self.not_judged = Counter("xhs_posts_not_judged", "Posts without a decision.", ["reason"], registry=to)
        self.images_left_out = Counter(
            "xhs_images_left_out", "Images that posts were judged without.", ["reason"], registry=to
        )
        self.refused = Counter("xhs_requests_refused", "Requests that a limit turned away.", ["reason"], registry=to)
        self.batch = Histogram(
            "xhs_batch_posts", "Posts that the model was asked about at once.", buckets=POSTS, registry=to
        )
        self.waiting = Gauge("xhs_posts_waiting", "Posts taken and not yet answered.", registry=to)
        self.cleaning = Gauge("xhs_posts_in_cleaning", "Of these, before or in cleaning.", registry=to)
        self.store_failures = Counter(
            "xhs_store_failures", "Requests that the appeals store could not serve.", registry=to
        )
        self.appeals = Counter("xhs_appeals", "Appeals asked for.", ["outcome"], registry=to)
        self.model = Gauge(
            "xhs_model_in_use", "1 for the model in use.", ["model_version", "policy_version"], registry=to
        )
        self.switches = Counter("xhs_model_switches", "Models put in use since the service started.", registry=to)

    def in_use(self, model_version: str, policy_version: str) -> None:
        """Say which model answers from now on."""
        self.model.clear()
        self.model.labels(model_version, policy_version).set(1)
        self.switches.inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
