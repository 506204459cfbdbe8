//! Streams in memory. A stale entry costs a retry, never a wrong event: the version check of the append protects it, in
//! the run of the store's server that it was loaded from. With another run all of them go (see `group.rs`).
//!
//! It does not protect a refusal, which appends nothing: the group decides again on freshly loaded state before it
//! refuses (see `group.rs`).

use std::num::NonZeroUsize;

use domain::StreamId;
use event_store::LoadedStream;
use lru::LruCache;

pub(crate) struct StreamCache(LruCache<StreamId, LoadedStream>);

impl StreamCache {
    pub(crate) fn new(streams: NonZeroUsize) -> Self {
        Self(LruCache::new(streams))
    }

    pub(crate) fn get(&mut self, stream: &StreamId) -> Option<&LoadedStream> {
        self.0.get(stream)
    }

    pub(crate) fn put(&mut self, stream: StreamId, loaded: LoadedStream) {
        self.0.put(stream, loaded);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn evict<'a>(&mut self, streams: impl IntoIterator<Item = &'a StreamId>) {
        for stream in streams {
            self.0.pop(stream);
        }
    }
}
