//! Locks between processes.

pub(crate) mod barrier;
mod bell;
mod cell;
pub(crate) mod condvar;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod ledger;
mod line;
pub(crate) mod mutex;
pub(crate) mod once;
pub(crate) mod raw;
pub(crate) mod reentrant;
pub(crate) mod rwlock;
pub(crate) mod semaphore;
