//! What a child that was made by a plain `fork` must not take for its own: the seats, threads and locks of its parent.
//!
//! Such a child has all the handles of its parent, but none of its other threads, so nobody keeps its presence. Here
//! the C library's fork handlers see to it that the child knows no seat of its own on any board; it takes one, with a
//! thread of its own behind it, when it first uses an object. What its parent held at the fork stays the parent's:
//! copies of guards, permits and places in lines that the child has inherited do nothing when they are dropped there.
//!
//! Another thread of the parent may be anywhere at the moment of the fork, also under one of the locks of this crate's
//! tables, and it doesn't exist in the child. So all those locks are taken before the fork, and given back after it on
//! both sides. The order in which they are taken is that in which the crate's own functions nest them.
//!
//! Calls that make a process past the C library (`clone`, `_Fork`) aren't noticed. After `exec` there is nothing left
//! to be forgotten.

use std::cell::UnsafeCell;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::channel::join;
use crate::memory::segment;
use crate::sync::reentrant;
use crate::wait::reactor;
use crate::{memory, presence};

/// How many forks lie between the first process and this one; as long as it's zero, all that this process has is its
/// own.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// How many forks lie between the first process and this one.
#[inline]
pub(crate) fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// All the locks, in the order in which they are taken. (Fields are dropped in this order too, which doesn't matter.)
struct Frozen {
    rows: join::Frozen,
    presence: presence::Frozen,
    reactor: reactor::Frozen,
    seats: presence::robust::Frozen,
    segments: segment::Frozen,
    _owners: reentrant::Frozen,
    _faults: memory::fault::Frozen,
}

/// Where the locks are kept between the handlers.
struct Kept(UnsafeCell<Option<Frozen>>);

// SAFETY: only the handlers touch it, and of several threads that fork at once only the one that has the locks gets
// there: `before` stores after it has taken them, and the two others take them out of it before they give them back.
unsafe impl Sync for Kept {}

static KEPT: Kept = Kept(UnsafeCell::new(None));

/// Makes the C library call us at each fork. Before the process has anything that a child must not inherit.
pub(crate) fn watch() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        // SAFETY: registers functions that may run in any thread that forks.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
}

extern "C" fn before() {
    let frozen = Frozen {
        rows: join::freeze(),
        presence: presence::freeze(),
        reactor: reactor::freeze(),
        seats: presence::robust::freeze(),
        segments: segment::freeze(),
        _owners: reentrant::freeze(),
        _faults: memory::fault::freeze(),
    };
    // SAFETY: we have the locks, so no other thread is here.
    unsafe { *KEPT.0.get() = Some(frozen) };
}

/// Takes the locks back out.
fn kept() -> Option<Frozen> {
    // SAFETY: in the thread that stored them, which still has the locks.
    unsafe { (*KEPT.0.get()).take() }
}

extern "C" fn in_parent() {
    drop(kept());
}

extern "C" fn in_child() {
    let Some(mut frozen) = kept() else { return };
    FORKS.fetch_add(1, Ordering::Relaxed);
    // Of what the other threads had in their hands, nothing will ever be finished or freed.
    frozen.seats.forget();
    frozen.reactor.forget();
    frozen.presence.forget();
    frozen.rows.forget();
    frozen.segments.forget();
}
