//! How managers end, and what is refused.

use std::path::PathBuf;

use integration_tests::{Row, eventually, millis, rows, seconds, within};
use polypool::manager::{BindTo, Manager, ManagerError, Proxy as _};

use crate::common::both;

pub(crate) const ROWS: &[Row<fn()>] = rows![
    a_killed_server_is_an_error_at_once,
    a_server_that_was_started_anew_is_another_one,
    a_guard_of_an_old_server_gives_nothing_back_to_the_new_one,
    shutdown_leaves_nothing,
    shutdown_ends_all_waits,
    large_messages_are_refused_and_the_connection_goes_on,
    too_many_requests_are_refused,
    what_gives_something_back_is_not_refused,
    removed_objects_end_their_waits,
    objects_in_transit_are_kept_for_a_while,
    a_server_ends_with_the_process_that_started_it,
];

pub(crate) const PROGRAMS: &[Row<fn()>] = rows![owner];

fn numbers_in(folder: &str) -> usize {
    std::fs::read_dir(folder).expect("a folder of /proc").count()
}

fn a_killed_server_is_an_error_at_once() {
    let manager = Manager::start().unwrap();
    let queue = manager.queue::<u8>().wait().unwrap();
    let pending = [queue.get().start(), queue.get().start()];
    let blocked = {
        let queue = queue.clone();
        std::thread::spawn(move || queue.get().wait())
    };
    queue.len().wait().unwrap();
    let pid = i32::try_from(manager.pid().unwrap()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    within(seconds(10), || {
        for call in pending {
            assert!(matches!(call.wait(), Err(ManagerError::ServerGone { .. })));
        }
        assert!(matches!(blocked.join().unwrap(), Err(ManagerError::ServerGone { .. })));
        for _ in 0..3 {
            let error = queue.len().wait().unwrap_err();
            assert!(matches!(error, ManagerError::ServerGone { .. }), "{error}");
        }
        assert!(matches!(queue.reconnect(), Err(ManagerError::ServerGone { .. })));
    });
}

fn a_server_that_was_started_anew_is_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("manager");
    let start = || Manager::builder().bind(BindTo::Unix(path.clone())).in_thread().unwrap();
    let first = start();
    let (named, other) = (first.named("n").value(&1u8).wait().unwrap(), first.value(&2u8).wait().unwrap());
    drop(first);
    assert!(matches!(named.get().wait(), Err(ManagerError::ServerGone { .. })));
    let second = start();
    let _new = second.named("n").value(&3u8).wait().unwrap();
    assert!(matches!(named.get().wait(), Err(ManagerError::Stale { .. })));
    assert!(matches!(other.get().wait(), Err(ManagerError::Stale { .. })));
    // The new one has the number of the old one.
    assert!(matches!(second.remove(&named).wait(), Err(ManagerError::ObjectGone)));
    named.reconnect().unwrap();
    assert_eq!(named.get().wait().unwrap(), 3);
    assert!(matches!(other.reconnect(), Err(ManagerError::Stale { .. })));
}

fn a_guard_of_an_old_server_gives_nothing_back_to_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("manager");
    let start = || Manager::builder().bind(BindTo::Unix(path.clone())).in_thread().unwrap();
    let first = start();
    let (lock, semaphore) = (first.named("l").lock().wait().unwrap(), first.named("s").semaphore(1).wait().unwrap());
    let condition = first.named("c").condition().wait().unwrap();
    let old = (lock.lock().wait().unwrap(), semaphore.acquire().wait().unwrap());
    let old_condition = condition.lock().wait().unwrap();
    drop(first);
    let second = start();
    let _objects = (second.named("l").lock().wait().unwrap(), second.named("s").semaphore(1).wait().unwrap());
    let _condition = second.named("c").condition().wait().unwrap();
    lock.reconnect().unwrap();
    semaphore.reconnect().unwrap();
    condition.reconnect().unwrap();
    let new = (lock.lock().wait().unwrap(), semaphore.acquire().wait().unwrap(), condition.lock().wait().unwrap());
    drop(old);
    assert!(lock.is_locked().wait().unwrap());
    assert_eq!(semaphore.available().wait().unwrap(), 0);
    // The first guards of both, and yet this one is not that one.
    let waited = old_condition.wait_timeout(millis(1)).wait();
    assert!(matches!(waited, Err(ManagerError::NotHeld(_))), "{waited:?}");
    drop(new);
    assert!(!lock.is_locked().wait().unwrap());
    assert_eq!(semaphore.available().wait().unwrap(), 1);
}

fn shutdown_leaves_nothing() {
    // What is opened once in a process is open after the first round.
    let mut seen = None;
    for round in 0..3 {
        both(|manager| {
            let queue = manager.queue::<u8>().wait().unwrap();
            queue.put(&1).wait().unwrap();
            let waiting = queue.join().start();
            assert_eq!(queue.get().wait().unwrap(), 1);
            manager.shutdown();
            manager.shutdown();
            assert!(waiting.wait().is_err());
        });
        let count = || (numbers_in("/proc/self/fd"), numbers_in("/proc/self/task"));
        match seen {
            None => {
                // The threads of the client's side see the end and go.
                assert!(eventually(seconds(10), || count().1 <= 2), "{:?}", count());
                seen = Some(count());
            }
            Some(seen) => assert!(eventually(seconds(10), || count() == seen), "round {round}: {:?} {seen:?}", count()),
        }
    }
}

fn shutdown_ends_all_waits() {
    both(|manager| {
        let (event, lock) = (manager.event().wait().unwrap(), manager.lock().wait().unwrap());
        let guard = lock.lock().wait().unwrap();
        let (waiting, locking) = (event.wait().start(), lock.lock().start());
        manager.shutdown();
        within(seconds(10), || {
            assert!(matches!(waiting.wait(), Err(ManagerError::ServerGone { .. })));
            assert!(matches!(locking.wait(), Err(ManagerError::ServerGone { .. })));
            assert!(matches!(event.set().wait(), Err(ManagerError::ServerGone { .. })));
        });
        drop(guard);
    });
}

fn large_messages_are_refused_and_the_connection_goes_on() {
    for manager in [Manager::builder().max_message(4096).in_thread(), Manager::builder().max_message(4096).start()] {
        let manager = manager.unwrap();
        let list = manager.list::<String>().wait().unwrap();
        let error = list.push(&"x".repeat(5_000)).wait().unwrap_err();
        assert!(matches!(error, ManagerError::TooLarge { limit: 4096, .. }), "{error}");
        for _ in 0..3 {
            list.push(&"x".repeat(2_000)).wait().unwrap();
        }
        let error = list.items().wait().unwrap_err();
        assert!(matches!(error, ManagerError::TooLarge { limit: 4096, .. }), "{error}");
        assert_eq!(list.len().wait().unwrap(), 3);
    }
}

fn too_many_requests_are_refused() {
    let manager = Manager::builder().max_requests_per_second(20).in_thread().unwrap();
    let value = manager.value(&1u8).wait().unwrap();
    let refused = (0..200).map(|_| value.get().wait()).find_map(Result::err).expect("a refusal");
    let ManagerError::Throttled { retry_after } = refused else { panic!("{refused}") };
    assert!(eventually(seconds(10), || value.get().wait().is_ok()), "{retry_after:?}");
}

fn what_gives_something_back_is_not_refused() {
    let manager = Manager::builder().max_requests_per_second(20).in_thread().unwrap();
    let (lock, value) = (manager.lock().wait().unwrap(), manager.value(&1u8).wait().unwrap());
    let other = lock.with_own_connection();
    assert!(!other.is_locked().wait().unwrap());
    let guard = lock.lock().wait().unwrap();
    (0..200).map(|_| value.get().wait()).find_map(Result::err).expect("a refusal");
    drop(guard);
    let is_free = || matches!(other.is_locked().wait(), Ok(false));
    assert!(eventually(seconds(20), is_free), "the lock was not given back");
}

fn removed_objects_end_their_waits() {
    both(|manager| {
        let queue = manager.named("q").queue::<u8>().wait().unwrap();
        let waiting = queue.get().start();
        queue.len().wait().unwrap();
        manager.remove(&queue).wait().unwrap();
        assert!(matches!(waiting.wait(), Err(ManagerError::ObjectGone)));
        assert!(matches!(queue.len().wait(), Err(ManagerError::ObjectGone)));
        assert!(manager.names().wait().unwrap().is_empty());
        assert!(matches!(manager.unpublish("q").wait(), Err(ManagerError::UnknownName(_))));
        let (one, two) = (manager.event().wait().unwrap(), manager.event().wait().unwrap());
        manager.publish("e", &one).wait().unwrap();
        manager.publish("e", &one).wait().unwrap();
        assert!(matches!(manager.publish("e", &two).wait(), Err(ManagerError::NameTaken(_))));
    });
}

fn objects_in_transit_are_kept_for_a_while() {
    let manager = Manager::builder().transit(seconds(1)).in_thread().unwrap();
    let sent = serde_json::to_string(&manager.value(&7u8).wait().unwrap()).unwrap();
    let received: polypool::manager::ValueProxy<u8> = serde_json::from_str(&sent).unwrap();
    assert_eq!(received.get().wait().unwrap(), 7);
    drop(received);
    assert!(eventually(seconds(20), || manager.stats().wait().unwrap().objects == 0));
    let late: polypool::manager::ValueProxy<u8> = serde_json::from_str(&sent).unwrap();
    assert!(matches!(late.get().wait(), Err(ManagerError::ObjectGone)));
}

/// A program with a manager in a process of its own. It says where that is, and lives until its input ends.
fn owner() {
    let manager = Manager::start().unwrap();
    let words = manager.named("words").dict::<String, u8>().wait().unwrap();
    words.insert(&"one".to_owned(), &1).wait().unwrap();
    println!("{}", serde_json::to_string(&(manager.address(), manager.pid())).unwrap());
    let _ = std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new());
    std::mem::forget(manager);
}

/// Whether it has ended; who inherits it may take its time to reap it.
fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

fn a_server_ends_with_the_process_that_started_it() {
    use std::io::BufRead as _;
    let mut program = std::process::Command::new(std::env::current_exe().unwrap());
    program.args(["--trial", "owner"]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut owner = program.spawn().unwrap();
    let lines = std::io::BufReader::new(owner.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).find_map(|line| serde_json::from_str(&line).ok());
    let (address, pid): (polypool::manager::Address, Option<u32>) = said.expect("where its manager is");
    let pid = pid.expect("a process of its own");

    let manager = Manager::connect(&address).unwrap();
    let words = manager.get::<polypool::manager::DictProxy<String, u8>>("words").wait().unwrap();
    let queue = manager.queue::<u8>().wait().unwrap();
    let waiting = queue.get().start();
    assert_eq!(words.get(&"one".to_owned()).wait().unwrap(), Some(1));
    assert!(!has_ended(pid));
    owner.kill().unwrap();
    owner.wait().unwrap();

    within(seconds(10), || assert!(matches!(waiting.wait(), Err(ManagerError::ServerGone { .. }))));
    assert!(eventually(seconds(10), || has_ended(pid)), "the server lives on as process {pid}");
    assert!(matches!(words.len().wait(), Err(ManagerError::ServerGone { .. })));
    assert!(matches!(Manager::connect(&address), Err(ManagerError::ServerGone { .. })));
    let polypool::manager::Address::Abstract(name) = &address else { panic!("{address} is in the file system") };
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(!sockets.contains(name.as_str()), "{sockets}");
}
