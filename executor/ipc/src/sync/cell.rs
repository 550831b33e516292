//! A value in shared memory that is replaced whole or not at all, whenever its writer dies; and the private copy
//! through which a guard changes it.
//!
//! The two-copy scheme of the [ledger](super::ledger), for values of the user's: who holds the lock works on a copy in
//! memory of its own. To commit it is to write it to the copy that is not current, and to raise the version, whose last
//! bit says which one is. Killed before that, the holder has changed nothing; after it, everything.
//!
//! ```text
//!    version 6 │ copy 0: current │ copy 1: for the next commit
//! ```
//!
//! Who may read or write is for the lock to say that stands beside it.

use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::object::Object;
use crate::values::Plain;

/// The value at one place of an object.
pub(super) struct Cell<'a, T> {
    object: &'a Object,
    offset: usize,
    value: PhantomData<T>,
}

impl<T> Clone for Cell<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Cell<'_, T> {}

impl<'a, T: Plain> Cell<'a, T> {
    /// How many bytes of a body it takes.
    pub(super) const LEN: usize = Self::COPIES + 2 * Self::STRIDE;

    const COPIES: usize = 8;
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// The cell at `offset` of the body, a multiple of 8.
    #[inline]
    pub(super) fn new(object: &'a Object, offset: usize) -> Self {
        Cell { object, offset, value: PhantomData }
    }

    /// The last value that was committed. Under the lock.
    #[inline]
    pub(super) fn get(self) -> T {
        let mut value = T::new_zeroed();
        if size_of::<T>() > 0 {
            self.object.load(self.copy(self.version()), value.as_mut_bytes());
        }
        value
    }

    /// Commits a value. Under the lock, and only for who may write.
    #[inline]
    pub(super) fn set(self, value: &T) {
        if size_of::<T>() > 0 {
            let next = self.version().wrapping_add(1);
            self.object.store(self.copy(next), value.as_bytes());
            // Should we be killed right here, the copy is whole: release.
            self.word().store(next, Ordering::Release);
        }
    }

    /// How often a value has been committed, modulo 2³². Under the lock.
    #[inline]
    pub(super) fn version(self) -> u32 {
        self.word().load(Ordering::Acquire)
    }

    #[inline]
    fn word(self) -> &'a AtomicU32 {
        self.object.at(self.offset)
    }

    #[inline]
    fn copy(self, version: u32) -> usize {
        self.offset + Self::COPIES + (version & 1) as usize * Self::STRIDE
    }
}

/// The copy of a value on which the holder of a lock works.
pub(super) struct Draft<T> {
    value: T,
    changed: bool,
    /// Whether the thread was panicking already, so that the guard isn't dropped because of a panic of its own.
    panicking: bool,
}

impl<T: Plain> Draft<T> {
    #[inline]
    pub(super) fn new(cell: Cell<'_, T>) -> Self {
        Draft { value: cell.get(), changed: false, panicking: std::thread::panicking() }
    }

    /// Makes the changes so far what others find.
    pub(super) fn commit(&mut self, cell: Cell<'_, T>) {
        if std::mem::take(&mut self.changed) {
            cell.set(&self.value);
        }
    }

    /// Forgets the changes since the last commit.
    pub(super) fn rollback(&mut self, cell: Cell<'_, T>) {
        if std::mem::take(&mut self.changed) {
            self.value = cell.get();
        }
    }

    /// The end of the guard: commits, unless it is a panic that ends it.
    #[inline]
    pub(super) fn finish(&mut self, cell: Cell<'_, T>) {
        if self.changed && (self.panicking || !std::thread::panicking()) {
            cell.set(&self.value);
        }
    }
}

impl<T> Deref for Draft<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Draft<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.changed = true;
        &mut self.value
    }
}
