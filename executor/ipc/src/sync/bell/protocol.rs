//! The two halves of a bell: functions over one atomic.
//!
//! The atomic's type comes from the parent module, so that the very same file runs over loom's atomics in
//! `tests/loom_bell.rs`. Both are called under the lock of the ledger beside which the bell stands, but the sleeps that
//! begin with what was heard aren't: they are the kernel's, which compares the word once more, with full ordering.

use super::{AtomicU32, Ordering};

/// What to sleep on. **Before** the look at the state by which one decides to sleep.
#[inline]
pub(super) fn heard(word: &AtomicU32) -> u32 {
    word.load(Ordering::SeqCst)
}

/// **Before** the change is committed which the sleepers are to see.
#[inline]
pub(super) fn ring(word: &AtomicU32) {
    word.fetch_add(1, Ordering::SeqCst);
}
