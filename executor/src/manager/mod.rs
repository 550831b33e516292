//! A server that holds ordinary Rust values, and typed proxies for them in other processes.
//!
//! A few nouns:
//!
//! * A [`Manager`] is a server and its owner: [`start`](Manager::start) puts it into a process of its own,
//!   [`in_thread`](Manager::in_thread) onto threads of this one. Dropping it ends it.
//! * An **object** is a value that it holds: one of the types that every manager has (dict, list, set, namespace,
//!   value, queue, lock, re-entrant lock, condition, event, semaphore, barrier), or one of a type of yours
//!   ([`#[managed]`](macro@crate::managed)).
//! * A [`Proxy`] stands for an object, in any process. It travels as data, such as an argument or result of a task, and
//!   connects by itself where it is used first.
//! * A [`Call`] is what each method of a proxy returns: [`wait`](Call::wait) for it, or await it under any runtime.
//!
//! ```
//! # polypool::worker_hook!();
//! use polypool::manager::{DictProxy, Manager, ManagerError};
//! use polypool::{ExecutorExt, ProcessPool};
//!
//! #[polypool::update]
//! fn add(count: &mut Option<u64>, n: u64) -> u64 {
//!     *count.insert(count.unwrap_or(0) + n)
//! }
//!
//! #[polypool::task]
//! fn count_words(text: String, words: DictProxy<String, u64>) -> Result<(), String> {
//!     for word in text.split_whitespace() {
//!         words.update(&word.to_owned(), add { n: 1 }).wait().map_err(|error| error.to_string())?;
//!     }
//!     Ok(())
//! }
//!
//! #[polypool::main]
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let manager = Manager::start()?;
//!     let words = manager.dict::<String, u64>().wait()?;
//!     let pool = ProcessPool::builder().workers(2).build()?;
//!     let texts = ["the cat", "the dog and the cat"];
//!     let tasks = texts.map(|text| pool.submit(count_words { text: text.to_owned(), words: words.clone() }));
//!     for task in tasks {
//!         task.wait()??;
//!     }
//!     assert_eq!(words.get(&"the".to_owned()).wait()?, Some(3));
//!     Ok(())
//! }
//! ```
//!
//! # Consistency
//!
//! Each call is one step: nobody sees it half done, and all processes see the steps of one object in one order. The
//! calls that a process makes of one manager, through all its proxies, go over one connection and are begun in the
//! order in which they were sent. Two calls are two steps. What has to read and write in one is an
//! [`update`](DictProxy::update) of an element or of [the whole](DictProxy::update_all), which runs a function of the
//! program in the server; a [`compare_and_swap`](DictProxy::compare_and_swap); or it is done under a lock. What is read
//! is a copy.
//!
//! # Blocking
//!
//! [`wait`](Call::wait) blocks its thread, an await never does. What waits in the server, for a lock or an item, keeps
//! no thread there and holds up no other call. A method of a type of yours, and an update, does hold up the other calls
//! of the process that made it, for as long as it runs: give a proxy whose methods take long [a connection of its
//! own](Proxy::with_own_connection). A method must not wait for something that a later call over the same connection
//! would bring about. One that calls its own object gets [`ManagerError::WouldDeadlock`].
//!
//! # Cancellation
//!
//! Dropping a call that was sent gives up its result; the server may still run it. Calls that wait are taken back, and
//! what they are granted meanwhile is given back: no item of a queue, no lock and no permit is lost by that.
//!
//! # How long objects live
//!
//! An object lives while a process has a proxy that it has used, or that it has made or was given by the manager; while
//! it has a [name](ManagerProxy::publish); and, for a proxy that was written into bytes, for 10 minutes
//! ([`transit`](ManagerBuilder::transit)) after that was done, so that whoever receives it finds the object. Whichever
//! is longest counts. So a server that runs for long collects nothing that nobody can reach, and what is to outlive all
//! who use it is given a name. [`remove`](ManagerProxy::remove) ends an object at once.
//!
//! # When somebody ends
//!
//! * A **process** that ends, however it does, gives up its references, permits, seats at barriers and waits. Its locks
//!   are poisoned: the next one gets [`ManagerError::Poisoned`] until somebody [repairs](LockProxy::repair) them. Items
//!   it has taken from a queue are lost, and said to be by [`join`](QueueProxy::join).
//! * When the **server** ends, all calls that are under way and all later ones get [`ManagerError::ServerGone`] at
//!   once. If another one is started at the address, the next call connects by itself and gets [`ManagerError::Stale`],
//!   for the object has gone with its server; [`reconnect`](Proxy::reconnect) finds the new object if the old one had
//!   been found by a name.
//! * A server of [`start`](Manager::start) ends with the process that started it, even when that is killed. It leaves
//!   nothing in the system.
//!
//! * A child of a plain **`fork`** (without `exec`) has copies of its parent's proxies, guards and calls, which are the
//!   parent's: calls get [`ManagerError::Forked`] at once, drops do nothing. It [connects](Manager::connect) anew, and
//!   finds objects by their names. Processes of a pool are no such children.
//!
//! # Who may connect
//!
//! By default the server listens at a Unix socket without a file and takes processes of the same user only. By TCP it
//! demands an [`AuthKey`]. Keys never travel with proxies: each process that needs one is told it with
//! [`set_security`], a pool's workers by its initializer; without it they get [`ManagerError::NoKey`]. Whoever has the
//! key may do everything with all objects.
//!
//! # When not to use it
//!
//! A call costs a way to another thread or process and back, tens of microseconds when nobody is awake. For numbers and
//! arrays that processes on one machine share, and for locks around them, shared memory is a hundred times quicker.

mod auth;
mod builtin;
mod client;
mod error;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod hosted;
mod lead;
#[cfg(test)]
mod losses;
mod object;
mod proxy;
mod secrets;
mod server;
mod timers;
#[cfg(feature = "tls")]
mod tls;
mod transport;
mod wire;

pub use auth::{AuthKey, AuthKeyError};
#[cfg(feature = "tls")]
pub use tls::{ClientTls, ServerTls, TlsConfigError};
pub use transport::{Address, BindTo, ClientSecurity, ConnectError, ParseAddressError, ServerSecurity, TransportError};

pub use builtin::{
    BarrierProxy, BarrierState, ConditionGuard, ConditionProxy, DictProxy, EventProxy, ListProxy, LockGuard, LockProxy,
    NamespaceProxy, Permit, QueueProxy, RLockGuard, RLockProxy, SemaphoreProxy, SetProxy, Sortable, ValueProxy,
    WholeDict, WholeList, WholeSet,
};
pub use error::ManagerError;
pub(crate) use handle::ServeHere;
pub use handle::{Manager, ManagerBuilder, ManagerProxy};
pub use hosted::{Implements, Managed, Update};
pub use proxy::{Call, Proxy, set_security};
pub use server::ManagerStats;

/// What can be in a manager's containers: data, with no borrows.
pub trait Data: serde::Serialize + serde::de::DeserializeOwned + 'static {}

impl<T: serde::Serialize + serde::de::DeserializeOwned + 'static> Data for T {}

/// What the macros write; not for use by hand.
#[doc(hidden)]
pub mod private {
    pub use super::hosted::{
        Failed, IsData, IsNoData, MANAGED, Made, ManagedRegistration, OfTrait, UPDATES, UpdateRegistration, Value,
        arguments, made, result,
    };
    pub use super::proxy::Remote;
}

/// A short stand-in for a schema: FNV-1a.
fn schema_hash(schema: &str) -> u64 {
    schema.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
