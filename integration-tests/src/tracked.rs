//! A value whose instances in this process can be counted.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

static LIVE: Mutex<BTreeMap<u64, usize>> = Mutex::new(BTreeMap::new());
static DECODED: AtomicU64 = AtomicU64::new(0);

/// A value with a number; [`Tracked::live`] tells how many instances with that number this process holds.
///
/// It travels between processes as its number: decoding makes a new instance there.
#[derive(Debug)]
pub struct Tracked(u64);

impl Tracked {
    /// An instance with a number of the caller's choice.
    #[must_use]
    pub fn new(number: u64) -> Self {
        *live().entry(number).or_default() += 1;
        Tracked(number)
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0
    }

    /// How many instances with this number there are in this process.
    #[must_use]
    pub fn live(number: u64) -> usize {
        live().get(&number).copied().unwrap_or(0)
    }

    /// How many instances with any number there are in this process.
    #[must_use]
    pub fn live_in_all() -> usize {
        live().values().sum()
    }

    /// How many instances were made by decoding in this process.
    #[must_use]
    pub fn decoded() -> u64 {
        DECODED.load(Ordering::SeqCst)
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if let Some(count) = live().get_mut(&self.0) {
            *count -= 1;
        }
    }
}

impl Serialize for Tracked {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Tracked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DECODED.fetch_add(1, Ordering::SeqCst);
        u64::deserialize(deserializer).map(Tracked::new)
    }
}

fn live() -> std::sync::MutexGuard<'static, BTreeMap<u64, usize>> {
    LIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
