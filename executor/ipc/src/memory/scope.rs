//! Shared memory that lives as long as a scope (Python's `multiprocessing.managers.SharedMemoryManager`).
//!
//! Python's version is a server process that unlinks the names of what it made. Here nothing that a scope makes has a
//! name: processes get it as a handle. So there is nothing to unlink, nothing to forget, and nothing is left when all
//! of them are killed.

use std::io;
use std::sync::{Mutex, PoisonError};

use super::list::{ListItem, SharedList};
use super::shared_memory::SharedMemory;

/// Makes shared memory and lists, and keeps them until it is dropped (Python:
/// `multiprocessing.managers.SharedMemoryManager`).
///
/// The scope holds a handle of everything it has made, so tasks may come and go with handles of theirs. When it is
/// dropped, each block is freed as soon as nobody uses it any more: at once, if the tasks are done. If its process is
/// killed, the same holds.
///
/// What should be found by name, and thus outlive its users, is not for a scope: see [`SharedMemory::create_new`].
///
/// # Examples
///
/// ```
/// use polypool_ipc::SharedMemoryScope;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let scope = SharedMemoryScope::new();
/// let table = scope.memory(1 << 20)?;
/// let limits = scope.list([10.into(), 20.into()])?;
/// // ... send clones of them to tasks, await the tasks ...
/// table.fill(0)?;
/// limits.set(0, 11)?;
/// drop((table, limits, scope)); // All of it is free again.
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[doc(alias = "SharedMemoryManager")]
pub struct SharedMemoryScope {
    made: Mutex<(Vec<SharedMemory>, Vec<SharedList>)>,
}

impl SharedMemoryScope {
    /// A scope in which nothing has been made.
    #[must_use = "what it makes is freed when it is dropped"]
    pub fn new() -> Self {
        SharedMemoryScope::default()
    }

    /// Anonymous memory of `len` bytes, all zero.
    ///
    /// # Errors
    ///
    /// As [`SharedMemory::new`].
    pub fn memory(&self, len: usize) -> io::Result<SharedMemory> {
        let memory = SharedMemory::new(len)?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).0.push(memory.clone());
        Ok(memory)
    }

    /// A list without a name. For one with more room in its slots, see [`keep_list`](SharedMemoryScope::keep_list).
    ///
    /// # Errors
    ///
    /// As [`SharedList::new`].
    pub fn list(&self, items: impl IntoIterator<Item = ListItem>) -> io::Result<SharedList> {
        let list = SharedList::new(items)?;
        self.keep_list(&list);
        Ok(list)
    }

    /// Keeps a list that was made elsewhere as long as the scope lives.
    pub fn keep_list(&self, list: &SharedList) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).1.push(list.clone());
    }

    /// Drops the scope's handles now, as its drop does; the scope can be used on.
    pub fn clear(&self) {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        drop(made);
    }
}
