//! Nothing is left behind: no descriptors, no threads but those that wait for others.

use std::pin::pin;
use std::time::Instant;

use polypool_ipc::{
    Barrier, BoundedSemaphore, Condvar, Event, Mutex, Once, OnceValue, ReentrantMutex, RwLock, Semaphore, pack, unpack,
};

use crate::family::{LIMIT, Peer, child};
use crate::{in_time, poll_once};

pub(crate) const ROLES: &[crate::Role] = &[("tidiness", tidy)];

fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count()
}

fn use_all() {
    let mutex = Mutex::new([1_u64; 8]).unwrap();
    let (bytes, luggage) = pack(|| serde_json::to_vec(&mutex).unwrap());
    let same: Mutex<[u64; 8]> = unpack(&luggage, || serde_json::from_slice(&bytes).unwrap());
    let guard = same.lock().unwrap();
    assert!(poll_once(pin!(mutex.lock_async())).is_pending());
    let condvar = Condvar::new().unwrap();
    assert!(poll_once(pin!(condvar.wait_async(guard))).is_pending());
    let semaphore = Semaphore::new(1).unwrap();
    let permit = semaphore.acquire();
    assert!(poll_once(pin!(semaphore.acquire_async())).is_pending());
    permit.forget();
    drop(BoundedSemaphore::new(1).unwrap().acquire());
    let lock = RwLock::new(1_u64).unwrap();
    let reader = lock.read().unwrap();
    assert!(poll_once(pin!(lock.write_async())).is_pending());
    drop(reader);
    let event = Event::new().unwrap();
    assert!(poll_once(pin!(event.wait_async())).is_pending());
    let barrier = Barrier::new(2).unwrap();
    assert!(poll_once(pin!(barrier.wait_async())).is_pending());
    Once::new().unwrap().call_once(|_| ());
    OnceValue::<u64>::new().unwrap().get_or_init(|_| 1);
    drop(ReentrantMutex::new(1_u64).unwrap().lock().unwrap());
}

fn tidy(parent: &Peer) {
    parent.recv::<()>();
    use_all();
    let before = (count("fd"), count("task"), count("map_files"));
    for _ in 0..200 {
        use_all();
    }
    // The thread that slept for the last futures may still hold on to what they waited for, until it looks around. The
    // heap may take a mapping.
    let given_up = Instant::now() + LIMIT / 2;
    loop {
        let after = (count("fd"), count("task"), count("map_files"));
        if after.0 <= before.0 && after.1 <= before.1 && after.2 <= before.2 + 5 {
            return;
        }
        assert!(Instant::now() < given_up, "{before:?} became {after:?}");
        std::thread::yield_now();
    }
}

#[test]
fn descriptors_threads_and_mappings_are_given_back() {
    in_time(|| child("tidiness", &()).join());
}
