//! What the node counts, for Prometheus.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use quorate_metadata::MetadataImage;

use crate::disks::{DiskProblems, hangs};
use crate::feed::FeedLoad;
use crate::telemetry::lines_dropped;

pub struct Metrics {
    registry: Registry,
    pub claims: Counter,
    pub brokers_fenced: Counter,
    pub batches_proposed: Counter,
    pub records_planned: Counter,
    pub event_loop_busy: Histogram,
    pub event_loop_held: Counter,
    pub in_flight_bytes: Gauge,
    pub queued_bytes: Gauge,
    active_controller: Gauge,
    last_applied_offset: Gauge,
    active_brokers: Gauge,
    fenced_brokers: Gauge,
    topics: Gauge,
    offline_partitions: Gauge,
    preferred_replica_imbalance: Gauge,
    remembered_reply_bytes: Gauge,
    remembered_clients: Gauge,
    feed_records: Gauge,
    feed_bytes: Gauge,
    watchers: Gauge,
    watcher_bytes: Gauge,
    disk_problems: Gauge,
    disks: DiskProblems,
}

impl Metrics {
    /// With what is wrong with the disks of this node.
    pub fn new(disks: DiskProblems) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("quorate"),
            claims: Counter::default(),
            brokers_fenced: Counter::default(),
            batches_proposed: Counter::default(),
            records_planned: Counter::default(),
            event_loop_held: Counter::default(),
            in_flight_bytes: Gauge::default(),
            queued_bytes: Gauge::default(),
            event_loop_busy: Histogram::new(exponential_buckets(0.000_02, 4.0, 10)),
            active_controller: Gauge::default(),
            last_applied_offset: Gauge::default(),
            active_brokers: Gauge::default(),
            fenced_brokers: Gauge::default(),
            topics: Gauge::default(),
            offline_partitions: Gauge::default(),
            preferred_replica_imbalance: Gauge::default(),
            remembered_reply_bytes: Gauge::default(),
            remembered_clients: Gauge::default(),
            feed_records: Gauge::default(),
            feed_bytes: Gauge::default(),
            watchers: Gauge::default(),
            watcher_bytes: Gauge::default(),
            disk_problems: Gauge::default(),
            disks,
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("controller_claims", "Times this node became the active controller", self.claims.clone());
        registry.register("brokers_fenced", "Fencing decisions of this node", self.brokers_fenced.clone());
        registry.register("batches_proposed", "Batches of records proposed", self.batches_proposed.clone());
        registry.register("records_planned", "Records planned", self.records_planned.clone());
        registry.register(
            "event_loop_busy_seconds",
            "Time to plan and propose one group of operations",
            self.event_loop_busy.clone(),
        );
        registry.register(
            "event_loop_held",
            "Plans given up because they held the event loop or took too long",
            self.event_loop_held.clone(),
        );
        registry.register(
            "in_flight_bytes",
            "Bytes of batches that are not replayed yet",
            self.in_flight_bytes.clone(),
        );
        registry.register("queued_bytes", "Bytes of requests that wait to be planned", self.queued_bytes.clone());
        registry.register("active_controller", "1 on the active controller", self.active_controller.clone());
        registry.register("last_applied_record_offset", "Next metadata offset", self.last_applied_offset.clone());
        registry.register("active_brokers", "Unfenced brokers", self.active_brokers.clone());
        registry.register("fenced_brokers", "Fenced brokers", self.fenced_brokers.clone());
        registry.register("global_topics", "Topics", self.topics.clone());
        registry.register("offline_partitions", "Partitions without a leader", self.offline_partitions.clone());
        registry.register(
            "preferred_replica_imbalance",
            "Partitions that another than their preferred replica leads",
            self.preferred_replica_imbalance.clone(),
        );
        registry.register(
            "remembered_reply_bytes",
            "Bytes of replies remembered for retries",
            self.remembered_reply_bytes.clone(),
        );
        registry.register(
            "remembered_clients",
            "Clients whose requests are remembered for retries",
            self.remembered_clients.clone(),
        );
        registry.register("feed_records", "Records kept for watchers that resume", self.feed_records.clone());
        registry.register("feed_bytes", "Memory of the records kept for watchers", self.feed_bytes.clone());
        registry.register("watchers", "Streams of the feed that are open", self.watchers.clone());
        registry.register("watcher_bytes", "Bytes of events on their way to watchers", self.watcher_bytes.clone());
        registry.register("disk_hangs", "Times that a disk has not answered in time", hangs());
        registry.register("disk_problems", "What is wrong with the disks of this node", self.disk_problems.clone());
        registry.register("log_lines_dropped", "Lines of the log that could not be written", lines_dropped());
    }

    /// The metrics as text, with the gauges read off the image and the feed at this moment.
    pub fn render(&self, image: &MetadataImage, feed: FeedLoad, active: bool) -> String {
        let fenced = image.brokers.values().filter(|broker| broker.fenced).count();
        self.active_controller.set(i64::from(active));
        self.last_applied_offset.set(image.next_offset.get());
        self.fenced_brokers.set(as_gauge(fenced));
        self.active_brokers.set(as_gauge(image.brokers.len() - fenced));
        self.topics.set(as_gauge(image.topics.len()));
        self.offline_partitions.set(as_gauge(image.index.leaderless_count()));
        self.preferred_replica_imbalance.set(as_gauge(image.index.misplaced_count()));
        self.remembered_reply_bytes.set(as_gauge(image.requests.bytes()));
        self.remembered_clients.set(as_gauge(image.requests.client_count()));
        self.feed_records.set(as_gauge(feed.records));
        self.feed_bytes.set(as_gauge(feed.bytes));
        self.watchers.set(as_gauge(feed.watchers));
        self.watcher_bytes.set(as_gauge(feed.transit_bytes));
        self.disk_problems.set(as_gauge(self.disks.count()));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes any text");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(DiskProblems::default())
    }
}

fn as_gauge(things: usize) -> i64 {
    i64::try_from(things).unwrap_or(i64::MAX)
}
