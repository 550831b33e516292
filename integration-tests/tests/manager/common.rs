//! What the tests of managers share.

use integration_tests::{Gate, seconds};
use polypool::manager::{DictProxy, LockProxy, Manager, ManagerError, QueueProxy, SemaphoreProxy};
use polypool::{ExecutorExt, Outcome, ProcessPool, StartMethod, TaskFuture};

/// Runs a test with a server on threads of this process and with one in a process of its own.
pub(crate) fn both(test: fn(&Manager)) {
    for manager in [Manager::in_thread(), Manager::start()] {
        test(&manager.expect("a manager"));
    }
}

/// The start methods of this system.
pub(crate) fn methods() -> &'static [StartMethod] {
    if cfg!(target_os = "linux") { &[StartMethod::Spawn, StartMethod::ForkServer] } else { &[StartMethod::Spawn] }
}

pub(crate) fn pool(method: StartMethod, workers: usize) -> ProcessPool {
    ProcessPool::builder().start_method(method).workers(workers).build().expect("a pool")
}

#[track_caller]
pub(crate) fn soon<T: Send + 'static>(mut task: TaskFuture<T>) -> Outcome<T> {
    match task.wait_timeout(seconds(20)) {
        Ok(outcome) => outcome,
        Err(_) => panic!("{task:?} has no outcome after 20 s"),
    }
}

/// Gets its death by this pool: the task arrives at the gate and is then cancelled, which kills the worker.
pub(crate) fn run_and_kill<T: polypool::Task<Output = ()>>(task: T, arrived: &Gate) {
    let pool = pool(StartMethod::Spawn, 1);
    let held = pool.submit(task);
    arrived.wait_for_arrivals(1);
    let pid = polypool::Executor::stats(&pool).workers[0].pid.expect("a process");
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is killed");
    soon(held).expect_err("it was killed");
}

/// Adds to a counter that may not be there yet.
#[polypool::update]
pub(crate) fn add(count: &mut Option<u64>, n: u64) -> u64 {
    *count.insert(count.unwrap_or(0) + n)
}

/// Adds to a number.
#[polypool::update]
pub(crate) fn plus(count: &mut u64, n: u64) -> u64 {
    *count += n;
    *count
}

/// Changes the value, and then panics.
#[polypool::update]
pub(crate) fn spoil(count: &mut Option<u64>) {
    *count = None;
    panic!("spoilt");
}

/// Adds to a counter of a dict, often.
#[polypool::task]
pub(crate) fn count_up(dict: DictProxy<String, u64>, times: u64) -> Result<(), String> {
    for _ in 0..times {
        dict.update(&"n".to_owned(), add { n: 1 }).wait().map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Adds to a counter of a dict by hand, under a lock.
#[polypool::task]
pub(crate) fn count_up_locked(dict: DictProxy<String, u64>, lock: LockProxy, times: u64) -> Result<(), String> {
    let step = || -> Result<(), ManagerError> {
        let key = "n".to_owned();
        let _guard = lock.lock().wait()?;
        let old = dict.get(&key).wait()?.unwrap_or(0);
        dict.insert(&key, &(old + 1)).wait()?;
        Ok(())
    };
    (0..times).try_for_each(|_| step()).map_err(|error| error.to_string())
}

#[polypool::task]
pub(crate) fn hold_lock(lock: LockProxy, gate: Gate) {
    let _guard = lock.lock().wait().expect("the lock");
    gate.pass();
}

#[polypool::task]
pub(crate) fn hold_permit(semaphore: SemaphoreProxy, gate: Gate) {
    let _permit = semaphore.acquire().wait().expect("a permit");
    gate.pass();
}

#[polypool::task]
pub(crate) fn take_item(queue: QueueProxy<u64>, gate: Gate) {
    queue.get().wait().expect("an item");
    gate.pass();
}
