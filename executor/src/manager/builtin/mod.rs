//! The types that every manager has: containers in `containers.rs` (and `whole.rs`, for steps with all of one), queues
//! in `queue.rs`, and what processes wait at in `sync.rs`; each with its server side and its proxy.
//!
//! Containers hold encoded values, so a server needs to know none of their types: it may be another program, and `get`
//! and `insert` copy bytes. Two keys are equal when their encodings are.

mod containers;
mod queue;
mod sync;
mod whole;

pub(super) use containers::initial;
pub use containers::{DictProxy, ListProxy, NamespaceProxy, SetProxy, ValueProxy};
pub use queue::QueueProxy;
pub use sync::{
    BarrierProxy, BarrierState, ConditionGuard, ConditionProxy, EventProxy, LockGuard, LockProxy, Permit, RLockGuard,
    RLockProxy, SemaphoreProxy,
};

pub use whole::{Sortable, WholeDict, WholeList, WholeSet};

use super::error::Failure;
use super::object::Object;
use super::server::Making;
use super::wire::Fields;

/// Makes an object of one of these types; `None` when it is none of them.
pub(super) fn make(making: &Making<'_>) -> Result<Option<Box<dyn Object>>, Failure> {
    let mut fields = Fields(making.arguments);
    Ok(Some(match making.kind {
        "dict" | "namespace" => Box::new(containers::Dict::default()),
        "list" => Box::new(containers::List::default()),
        "set" => Box::new(containers::Set::default()),
        "value" => Box::new(containers::Value::new(fields.rest().to_vec())),
        "queue" => Box::new(queue::Queue::new(fields.number()?)),
        "lock" | "condition" => Box::new(sync::Lock::new(false)),
        "rlock" => Box::new(sync::Lock::new(true)),
        "event" => Box::new(sync::Event::default()),
        "semaphore" => {
            let (permits, bounded) = (fields.number()?, fields.flag()?);
            Box::new(sync::Semaphore::new(permits, bounded))
        }
        "barrier" => Box::new(sync::Barrier::new(fields.number()?)?),
        _ => return Ok(None),
    }))
}

/// Elements of containers, and containers as a whole, as peers and updates may have left them.
#[cfg(any(fuzzing, test))]
pub(super) fn fuzz_elements(data: &[u8]) {
    if let Ok(place) = whole::Place::of(data) {
        assert!(place.compare(&place).is_eq(), "an element is not in its own place");
    }
    for parts in [whole::split_sequence(data), whole::split_map(data)].into_iter().flatten() {
        assert!(parts.iter().map(|part| part.len()).sum::<usize>() < data.len(), "more came out than there was");
    }
}

/// Implements what all proxies have in common: cloning, travelling, `Debug`.
macro_rules! proxy {
    ($name:ident, $schema:expr $(, $parameter:ident)*) => {
        impl<$($parameter: $crate::manager::Data),*> $crate::manager::Proxy for $name<$($parameter),*> {
            fn schema() -> String {
                $schema
            }

            fn from_remote(remote: $crate::manager::proxy::Remote) -> Self {
                $name { remote, _types: std::marker::PhantomData }
            }

            fn remote(&self) -> &$crate::manager::proxy::Remote {
                &self.remote
            }
        }

        impl<$($parameter),*> Clone for $name<$($parameter),*> {
            fn clone(&self) -> Self {
                $name { remote: self.remote.clone(), _types: std::marker::PhantomData }
            }
        }

        impl<$($parameter),*> std::fmt::Debug for $name<$($parameter),*> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.remote.fmt(f)
            }
        }

        impl<$($parameter),*> serde::Serialize for $name<$($parameter),*> {
            fn serialize<Ser: serde::Serializer>(&self, serializer: Ser) -> Result<Ser::Ok, Ser::Error> {
                self.remote.serialize(serializer)
            }
        }

        impl<'de $(, $parameter: $crate::manager::Data)*> serde::Deserialize<'de> for $name<$($parameter),*> {
            fn deserialize<De: serde::Deserializer<'de>>(deserializer: De) -> Result<Self, De::Error> {
                let schema = <Self as $crate::manager::Proxy>::schema();
                let remote = $crate::manager::proxy::Remote::deserialize(deserializer, schema)?;
                Ok($name { remote, _types: std::marker::PhantomData })
            }
        }
    };
}

use proxy;
