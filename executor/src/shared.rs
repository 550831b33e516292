//! State that processes share: values, arrays, locks, queues, pipes and memory whose handles are arguments of tasks.
//!
//! | in Python | here | |
//! | --- | --- | --- |
//! | `multiprocessing.Value`, `Array` | [`Value`], [`Array`] | under a lock; [`AtomicValue`] and [`AtomicArray`] without |
//! | `Lock`, `RLock` | [`Mutex`], [`ReentrantMutex`] | a death of the holder is told to the next one |
//! | `Semaphore`, `BoundedSemaphore` | [`Semaphore`], [`BoundedSemaphore`] | permits of the dead come back |
//! | `Event`, `Condition`, `Barrier` | [`Event`], [`Condvar`], [`Barrier`] | |
//! | – | [`RwLock`], [`Once`], [`OnceValue`] | |
//! | `Pipe` | [`pipe`] | |
//! | `Queue`, `SimpleQueue`, `JoinableQueue` | [`Queue`], [`JoinableQueue`] | a killed process never wedges it |
//! | `shared_memory.SharedMemory`, `ShareableList` | [`SharedMemory`], [`SharedList`] | without a name unless you give one |
//! | `managers.SharedMemoryManager` | [`SharedMemoryScope`] | |
//! | `Manager` | [`manager`](crate::manager) | for ordinary Rust values, and over the network |
//!
//! Every one of them can be an argument of a [`#[task]`](macro@crate::task), a field of one, or a result: what travels is a handle,
//! and all handles mean the same object. The last one to be dropped frees it, and so does the death of all processes that have one; nothing of it
//! has a name in the system, unless you give it one in order to keep it.
//!
//! Every wait has four forms: `lock` blocks, `try_lock` doesn't wait, `lock_timeout` waits for so long, and `lock_async` is awaited and never blocks the
//! thread of a runtime.
//!
//! These are the parts of the crate `polypool-ipc`, which can be used by itself.
//!
//! # Platforms
//!
//! Linux, from 5.16 on (older kernels work, but notice deaths only after some milliseconds). Elsewhere this module isn't there.
//!
//! # Examples
//!
//! ```
//! # polypool::worker_hook!();
//! use polypool::shared::Value;
//! use polypool::{ExecutorExt, ProcessPool};
//!
//! #[polypool::task]
//! fn count(counter: Value<u64>, times: u64) {
//!     for _ in 0..times {
//!         counter.with(|counter| *counter += 1);
//!     }
//! }
//!
//! #[polypool::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pool = ProcessPool::builder().workers(2).build()?;
//!     let counter = Value::new(0_u64)?;
//!     let tasks = [0, 1].map(|_| pool.submit(count { counter: counter.clone(), times: 100_000 }));
//!     for task in tasks {
//!         task.await?;
//!     }
//!     assert_eq!(counter.get(), 200_000);
//!     Ok(())
//! }
//! ```

pub use polypool_ipc::{
    Array, ArrayError, ArrayGuard, Atomic, AtomicArray, AtomicBits, AtomicNumber, AtomicPrimitive, AtomicValue,
    Barrier, BarrierError, BarrierWaitResult, BoundedSemaphore, ByteQueue, CodecError, Condvar, Connection, Corrupt,
    Event, Fd, GetError, ItemStream, Items, JoinableQueue, ListError, ListItem, Lock, LockError, LockOwner, LockResult,
    Mutex, MutexGuard, Once, OnceValue, OwnedReentrantGuard, Permit, PipeError, PipeReceiver, PipeSender, Plain,
    PresenceError, PreviousAttempt, PutError, PutFailure, Queue, QueueOptions, RLock, ReentrantMutex,
    ReentrantMutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphoreError, SharedList,
    SharedListBuilder, SharedMemory, SharedMemoryCursor, SharedMemoryScope, StreamOptions, Task, TooManyDone, Value,
    ValueGuard, WaitError, channel, pipe, pipe_between,
};
