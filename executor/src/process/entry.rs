//! How a process becomes a worker: [`init`] in a program's `main`, [`worker_hook!`](crate::worker_hook) in a test
//! binary.
//!
//! The supervisor starts the same program again with one environment variable set. A process that finds it becomes a
//! worker and never returns to the program's own code; a process that has it and yet reaches its own code has
//! forgotten `init()`, and is refused a pool, so that no tree of processes can grow.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::BuildError;

/// Says that this process is to become a worker, and of whom: `role protocol parent`.
pub(super) const VARIABLE: &str = "POLYPOOL_WORKER";

/// Whether this process has called [`init`] or has the hook, so that the program can start itself as a worker.
static HAS_ENTRY: AtomicBool = AtomicBool::new(false);

/// The process that this one is a worker of.
static PARENT: OnceLock<u32> = OnceLock::new();

/// The name of this worker.
static NAME: OnceLock<String> = OnceLock::new();

/// What a process is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Worker,
    ForkServer,
}

impl Role {
    /// The value of the variable.
    pub(super) fn value(self) -> String {
        let role = match self {
            Role::Worker => "worker",
            Role::ForkServer => "forkserver",
        };
        format!("{role} {} {}", super::wire::PROTOCOL, std::process::id())
    }
}

/// Makes this process a worker, if it was started to be one; otherwise it does nothing but remember that the program
/// can be started as a worker.
///
/// Put it on the first line of `main`, before anything starts a thread, opens a file or prints.
/// [`#[polypool::main]`](macro@crate::main) does it for you.
///
/// ```
/// polypool::init();
/// // the rest of `main`
/// ```
///
/// In a worker it does not return: it runs tasks until the pool ends, and then ends the process. When two tasks of the
/// program have one name, it ends the process with code 2 and says so.
pub fn init() {
    HAS_ENTRY.store(true, Ordering::SeqCst);
    if let Ok(value) = std::env::var(VARIABLE) {
        become_worker(&value, TasksOn::ThisThread);
    }
    if let Err(error) = crate::task::registry() {
        eprintln!("polypool: {error}");
        std::process::exit(2);
    }
}

/// What [`worker_hook!`](crate::worker_hook) runs before `main`.
#[doc(hidden)]
pub fn init_before_main() {
    HAS_ENTRY.store(true, Ordering::SeqCst);
    if let Ok(value) = std::env::var(VARIABLE) {
        become_worker(&value, TasksOn::TheirOwnThread);
    }
}

/// The process that wanted this worker, if this is one.
pub(crate) fn parent() -> Option<u32> {
    PARENT.get().copied()
}

/// The name of this worker, if this is one.
pub(crate) fn own_name() -> Option<&'static str> {
    NAME.get().map(String::as_str)
}

/// This worker has been told its name.
#[cfg(unix)]
pub(super) fn set_own_name(name: &str) {
    let _ = NAME.set(name.to_owned());
}

/// Where a worker runs its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TasksOn {
    /// In `main`.
    ThisThread,
    /// Before `main`, where this is not a thread that Rust's runtime has set up (name, guard page). It is started only
    /// when everything is done that needs a process with a single thread.
    TheirOwnThread,
}

/// Serves the calls of a worker's channel, and ends the process.
#[cfg(unix)]
pub(super) fn serve(channel: std::os::unix::net::UnixStream, tasks_on: TasksOn) -> ! {
    if tasks_on == TasksOn::ThisThread {
        super::worker::serve(channel);
    }
    let thread = std::thread::Builder::new().name("polypool-worker".to_owned());
    match thread.spawn(move || super::worker::serve(channel)) {
        Ok(thread) => {
            let _ = thread.join();
        }
        Err(error) => eprintln!("polypool: the worker's thread could not be started: {error}"),
    }
    std::process::exit(2)
}

#[cfg(unix)]
fn become_worker(value: &str, tasks_on: TasksOn) -> ! {
    // The children of this worker are not workers of this pool.
    let _ = polypool_ipc::remove_env(VARIABLE);
    let mut words = value.split(' ');
    let role = match words.next() {
        Some("worker") => Role::Worker,
        Some("forkserver") => Role::ForkServer,
        _ => {
            eprintln!("polypool: {VARIABLE}={value:?} is not something that a pool has set; unset it");
            std::process::exit(2);
        }
    };
    if words.next() != Some(&super::wire::PROTOCOL.to_string()) {
        eprintln!("polypool: this program was built with another version of polypool than the one that starts it");
        std::process::exit(2);
    }
    if let Some(parent) = words.next().and_then(|pid| pid.parse().ok()) {
        let _ = PARENT.set(parent);
    }
    let channel = match polypool_ipc::take_stdin() {
        Ok(channel) => channel,
        Err(error) => {
            eprintln!("polypool: a worker's standard input must be its channel: {error}");
            std::process::exit(2);
        }
    };
    // Best effort: whatever the parent forgot to mark as "close on exec" is of no use here.
    let _ = polypool_ipc::close_inherited(&[std::os::fd::AsFd::as_fd(&channel)]);
    polypool_ipc::ignore_sigpipe();
    match role {
        Role::Worker => serve(channel.into(), tasks_on),
        #[cfg(target_os = "linux")]
        Role::ForkServer => super::forkserver::serve(channel.into(), tasks_on),
        #[cfg(not(target_os = "linux"))]
        Role::ForkServer => std::process::exit(2),
    }
}

#[cfg(not(unix))]
fn become_worker(_value: &str, _tasks_on: TasksOn) -> ! {
    eprintln!("polypool: process pools are not supported on this platform");
    std::process::exit(2);
}

/// Whether this process may have a pool whose workers are this program started again.
pub(super) fn check(own_executable: bool) -> Result<(), BuildError> {
    if let Ok(value) = std::env::var(VARIABLE) {
        let parent = value.rsplit(' ').next().and_then(|pid| pid.parse().ok()).unwrap_or(0);
        return Err(BuildError::InsideForgottenWorker { parent });
    }
    if own_executable && !HAS_ENTRY.load(Ordering::SeqCst) {
        return Err(BuildError::NoEntry);
    }
    Ok(())
}

/// Lets a *test binary* start itself as a worker: put it once, anywhere at the top level of a test crate.
///
/// Test binaries have no `main` of their own in which to call [`init`](crate::init), so this runs before `main` and
/// takes over only in a process that a pool has started. Rust promises little before `main`, which is why programs
/// call `init()` instead and this is for tests, benches and doc tests alone.
///
/// ```
/// polypool::worker_hook!();
/// ```
#[macro_export]
macro_rules! worker_hook {
    () => {
        $crate::__private::before_main!($crate::__private::init_before_main);
    };
}
