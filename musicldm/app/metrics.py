"""Counts for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from musicldm.app.jobs import Jobs
from musicldm.app.library import Library


class Metrics:
    """What `GET /metrics` tells, of one server."""

    def __init__(self, jobs: Jobs, library: Library):
        self.jobs, self.library = jobs, library
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def collect(self) -> Iterable[Metric]:
        """Called by the registry for each answer."""
        by_status = GaugeMetricFamily("musicldm_jobs", "Jobs by status", labels=["status"])
        for status, count in self.library.counts().items():
            by_status.add_metric([status], count)
        yield by_status
        yield GaugeMetricFamily("musicldm_queue_length", "Jobs that wait", value=self.jobs.waiting)
        yield CounterMetricFamily("musicldm_music_seconds", "Music made since the start", value=self.jobs.seconds_made)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
