//! State that processes share, and what a pool of processes needs besides.
//!
//! | | |
//! | --- | --- |
//! | values | [`Value`], [`Array`], [`AtomicValue`], [`AtomicArray`] |
//! | memory | [`SharedMemory`], [`SharedList`], [`SharedMemoryScope`] |
//! | locks | [`Mutex`], [`ReentrantMutex`], [`RwLock`], [`Semaphore`], [`BoundedSemaphore`], [`Once`], [`OnceValue`] |
//! | signals | [`Event`], [`Condvar`], [`Barrier`] |
//! | channels | [`pipe`], [`channel`], [`Queue`], [`JoinableQueue`], [`ByteQueue`]; below them [`stream_pair`] |
//!
//! Each of these is a **handle** of an object in shared memory. Handles travel in messages ([`pack`], [`unpack`]), and
//! all handles of an object mean the same one; it is freed with the last. When a process dies, what it held is given to
//! the others, who are told.
//!
//! Every wait has four forms: `lock` blocks, `try_lock` doesn't wait, `lock_timeout` waits for so long, and
//! `lock_async` is a future for any runtime, which never blocks the thread that polls it. (Only [`Condvar`] has no form
//! that doesn't wait: nobody can notify before the lock has been given back, so it could never tell of anything. What
//! there is to look at is the value under the lock, which the caller has.)
//!
//! The rest is for the process pool of [polypool], which itself forbids `unsafe`; what needs it lives here, in small
//! pieces behind safe functions, each with the argument why it is sound:
//!
//! - [`Claims`] is a table that says for every call sent to a worker whether the worker has started it, so that a call
//!   is either run or taken back, never both.
//! - [`send_with_fds`] and [`recv_with_fds`] pass **descriptors** over a socket, [`Luggage`] those that belong to
//!   messages.
//! - [`fork_single_threaded`] makes a **process** without `exec`, and refuses where that would be unsound;
//!   [`fork_generation`] tells what a process has made from what it has inherited.
//! - [`close_inherited`], [`remove_env`], [`take_stdin`], [`ignore_sigpipe`] and [`set_process_name`] are what a worker
//!   does **to itself** before its first task; [`die_now`] is what it does when its parent has gone.
//! - [`before_main!`] lets a **test binary** become a worker before its test harness starts.
//! - [`prefer_huge_pages`] makes fresh memory of large **messages** cheaper.
//! - [`PidFd`] and [`try_wait_pid`] kill a worker without hitting a stranger, and tell how it ended.
//!
//! # A thread of ours
//!
//! With its first shared object, a process gets a thread named `polypool-ipc`. The kernel tells the others by it that
//! the process has died, and it sleeps for the futures of the process. It uses no processor time while nothing happens,
//! and handles no signals. A process that has it can't [`fork_single_threaded`].
//!
//! A child that is made by a plain `fork` is a process of its own for the others: nothing that its parent holds is its
//! own, and copies of guards and permits do nothing there. It gets such a thread, and a place among those who share, as
//! it first uses an object that somebody can hold. If the system has no thread for it, or too many share already, that
//! use panics; so does the drop of a wait in line that it has inherited.
//!
//! # Processes that are stopped
//!
//! A process can be stopped (`SIGSTOP`, a debugger) at any point and isn't dead then. What it holds stays its own. It
//! may also be stopped *inside* of one of the short steps, each of less than a microsecond, in which semaphores,
//! `RwLock`, `Barrier`, `Condvar` and queues are changed, and which nobody else can make meanwhile. Then:
//!
//! - The `try_` forms give it 10 ms, and then say that they would have to wait (queues: `Busy`).
//! - The futures stay pending, and the `_timeout` forms end in time, unless there is something to be given back.
//! - What has no form waits until it goes on or dies: `release`, `available`, `notify`, `close`, `abort`, `reset` and
//!   the like; and whatever gives back: the drop of a [`Permit`] or of a guard of an [`RwLock`], and the end, by a drop
//!   or a timeout, of a wait that has a place at the head of a line, at a barrier or in a condition variable. It can't
//!   be put off, as the others would never learn of it.
//! - Locks of one word (`Mutex`, `ReentrantMutex`, `Once`, the locks of `Value` and `Array`) have no such step. Their
//!   `try_` forms and drops never wait for anybody.
//!
//! # Trust
//!
//! The process on the other side may have crashed half-way or lie. Nothing it writes into shared memory or sends makes
//! a function of this crate panic or undefined behaviour possible; it can only spoil the outcome of the calls it was
//! given.
//!
//! # Platforms
//!
//! Everything is there on Linux; shared state is only there (and on Android), at its best from Linux 5.16 on: older
//! kernels make waiters look for dead holders every 10 ms. On other Unix systems a function that has no equivalent
//! returns [`ErrorKind::Unsupported`](std::io::ErrorKind::Unsupported) and says so in its documentation; macOS lacks
//! only [`PidFd`]. Elsewhere (Windows) the crate compiles and is empty.
//!
//! [polypool]: https://github.com/polypool/polypool

#![cfg(unix)]

mod carry;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod channel;
mod claims;
mod fds;
mod fork;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod forked;
mod hook;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod memory;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod object;
mod pidfd;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod presence;
mod single_thread;
mod startup;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod sync;
mod sys;
mod travel;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod values;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod wait;

pub use carry::{LuggageError, Sending};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use channel::{
    ByteQueue, CodecError, Corrupt, GetError, ItemStream, Items, JoinableQueue, PutError, PutFailure, Queue,
    QueueOptions, Task, TooManyDone,
};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use channel::{
    pipe::{Connection, PipeReceiver, PipeSender, channel, pipe, pipe_between},
    ring_socket::{RingCloser, RingReader, RingSocket, RingWriter},
    stream::{Frame, FrameReceiver, FrameSender, PipeError, Received, StreamEnd, StreamOptions, stream_pair},
};
#[cfg(any(target_os = "linux", target_os = "android"))]
#[doc(hidden)]
pub use channel::{ring::record::walk as __walk_ring, stream::fuzz as __fuzz_stream};
pub use claims::{ClaimState, Claims};
pub use fds::{recv_with_fds, send_with_fds};
pub use fork::{Fork, fork_generation, fork_single_threaded};
#[doc(hidden)]
pub use hook::run as __run_before_main;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use memory::{
    huge::prefer_huge_pages,
    list::{ListError, ListItem, SharedList, SharedListBuilder},
    scope::SharedMemoryScope,
    shared_memory::{SharedMemory, SharedMemoryCursor},
};
pub use pidfd::{Exit, PidFd, SIGKILL, SIGTERM, try_wait_pid};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use presence::PresenceError;
pub use single_thread::NotSingleThreaded;
pub use startup::{close_inherited, die_now, ignore_sigpipe, remove_env, set_process_name, take_stdin};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use sync::{
    barrier::{Barrier, BarrierError, BarrierWaitResult},
    condvar::Condvar,
    error::{LockError, LockResult, WaitError},
    event::Event,
    mutex::{Lock, Mutex, MutexGuard},
    once::{Once, OnceValue, PreviousAttempt},
    reentrant::{LockOwner, OwnedReentrantGuard, RLock, ReentrantMutex, ReentrantMutexGuard},
    rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard},
    semaphore::{BoundedSemaphore, Permit, Semaphore, SemaphoreError},
};
pub use travel::{Fd, Luggage, pack, unpack};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use values::{
    Plain,
    array::{Array, ArrayError, ArrayGuard},
    atomic::{Atomic, AtomicArray, AtomicBits, AtomicNumber, AtomicPrimitive, AtomicValue},
    value::{Value, ValueGuard},
};

/// The example of the README is compiled with the doc tests.
#[cfg(all(doctest, any(target_os = "linux", target_os = "android")))]
#[doc = include_str!("../README.md")]
struct Readme;
