//! The agent's view of the committed metadata: where the tasks of a broker read it, and learn that it has changed.

use std::sync::Arc;

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::Offset;
use tokio::sync::watch;

/// The committed metadata as this broker knows it. Cheap to clone.
#[derive(Clone)]
pub struct MetadataCache {
    image: Arc<watch::Sender<MetadataImage>>,
}

impl MetadataCache {
    pub(super) fn new() -> Self {
        Self { image: Arc::new(watch::Sender::new(MetadataImage::default())) }
    }

    pub fn image(&self) -> MetadataImage {
        self.image.borrow().clone()
    }

    /// Changes with every batch replayed.
    pub fn changes(&self) -> watch::Receiver<MetadataImage> {
        self.image.subscribe()
    }

    /// Everything below this offset has been replayed.
    pub fn next_offset(&self) -> Offset {
        self.image.borrow().next_offset
    }

    pub(super) fn publish(&self, newer: &MetadataImage) {
        self.image.send_if_modified(|image| {
            // A snapshot of a node that lags must not undo what was acted on.
            let is_newer = newer.next_offset > image.next_offset;
            if is_newer {
                image.clone_from(newer);
            }
            is_newer
        });
    }
}
