//! A value in two copies, which is never half-written, for readers and for those who come after a dead writer.
//!
//! A version says which of two copies is the current one. A writer, who holds a lock against other writers, fills the
//! copy that nobody reads and then raises the version: killed before that, it has changed nothing; after it,
//! everything. Readers need no lock: they read the version, the copy it names, and the version again. If it's the same,
//! no writer can have touched that copy meanwhile, as this takes two changes. A reader thus never waits for a writer,
//! dead or alive; it only looks again when the value has changed under its eyes.
//!
//! ```text
//!    version 6 │ copy 0: current │ copy 1: free for the next change
//! ```
//!
//! The lock, and where all this stands, is left to the users: [`Value`](crate::Value) and
//! [`SharedList`](crate::SharedList). The [`Ledger`](crate::sync::ledger) has the same idea for state on which
//! processes wait.
//!
//! The protocol is run through every interleaving by `tests/loom_twin.rs`.

use std::sync::atomic::{AtomicU64, Ordering, fence};

mod protocol;

pub(crate) use protocol::{publish, read, read_locked};
