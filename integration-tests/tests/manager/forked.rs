//! Children of a plain `fork`: what they have of their parent's proxies, guards and calls is not theirs.

use std::process::{Command, Stdio};

use futures_util::FutureExt as _;
use integration_tests::{Row, rows};
use polypool::manager::{Address, BindTo, DictProxy, LockProxy, Manager, ManagerError, Proxy, SemaphoreProxy};
use polypool_ipc::{Exit, Fork, fork_single_threaded, try_wait_pid};

pub(crate) const ROWS: &[Row<fn()>] = rows![a_forked_child_is_told_that_its_proxies_are_its_parents];

pub(crate) const PROGRAMS: &[Row<fn()>] = rows![forks];

fn a_forked_child_is_told_that_its_proxies_are_its_parents() {
    let folder = tempfile::tempdir().unwrap();
    for bind in [BindTo::Private, BindTo::Unix(folder.path().join("manager"))] {
        let manager = Manager::builder().bind(bind).in_thread().unwrap();
        let _words = manager.named("words").dict::<String, u8>().wait().unwrap();
        let lock = manager.named("lock").lock().wait().unwrap();
        let semaphore = manager.named("semaphore").semaphore(3).wait().unwrap();

        // Not under the watchdog of a trial, which is a thread: this one has no other.
        let mut program = Command::new(std::env::current_exe().unwrap());
        let program = program.args(["--trial", "forks"]).stdin(Stdio::null());
        let address = serde_json::to_string(manager.address()).unwrap();
        let status = program.env("FORKS_ADDRESS", address).status().unwrap();
        assert!(status.success(), "{status}");
        assert!(!lock.is_locked().wait().unwrap());
        assert_eq!(semaphore.available().wait().unwrap(), 3);
    }
}

fn forks() {
    let address: Address = serde_json::from_str(&std::env::var("FORKS_ADDRESS").unwrap()).unwrap();
    let manager = Manager::connect(&address).unwrap();
    let words = manager.get::<DictProxy<String, u8>>("words").wait().unwrap();
    let lock = manager.get::<LockProxy>("lock").wait().unwrap();
    let semaphore = manager.get::<SemaphoreProxy>("semaphore").wait().unwrap();
    let key = "one".to_owned();
    words.insert(&key, &1).wait().unwrap();
    let fresh = words.get(&key);
    let held = (lock.lock().wait().unwrap(), semaphore.acquire().wait().unwrap());

    let child = match fork_single_threaded().unwrap() {
        Fork::Parent { child } => child,
        Fork::Child => {
            #[track_caller]
            fn refused<T: std::fmt::Debug>(result: Result<T, ManagerError>) {
                assert!(matches!(result, Err(ManagerError::Forked { .. })), "{result:?}");
            }
            refused(fresh.wait());
            refused(words.len().wait());
            refused(words.len().start().wait());
            refused(words.len().now_or_never().expect("it fails at once"));
            refused(words.clone().with_own_connection().len().wait());
            refused(lock.try_lock().wait());
            refused(manager.ping().wait());
            refused(words.reconnect());
            assert!(serde_json::to_string(&words).unwrap_err().to_string().contains("inherited by a fork"));
            let _ = format!("{words:?} {manager:?} {held:?}");

            // What it makes itself works.
            let own = Manager::connect(&address).unwrap();
            refused(own.publish("other", &words).wait());
            let own_words = own.get::<DictProxy<String, u8>>("words").wait().unwrap();
            assert_eq!(own_words.insert(&"two".to_owned(), &2).wait().unwrap(), None);
            // Copies of guards do nothing.
            let own_semaphore = own.get::<SemaphoreProxy>("semaphore").wait().unwrap();
            let _permit = own_semaphore.acquire().wait().unwrap();
            drop((held, words, lock, semaphore, manager));
            let own_lock = own.get::<LockProxy>("lock").wait().unwrap();
            assert!(matches!(own_lock.try_lock().wait(), Err(ManagerError::TimedOut)));
            assert_eq!(own_semaphore.available().wait().unwrap(), 1);
            std::process::exit(7);
        }
    };
    let exit = loop {
        if let Some(exit) = try_wait_pid(child).unwrap() {
            break exit;
        }
        std::thread::yield_now();
    };
    assert_eq!(exit, Exit::Code(7));
    // The child has left the connection as it was.
    assert_eq!(fresh.wait().unwrap(), Some(1));
    assert_eq!(words.len().wait().unwrap(), 2);
    assert!(lock.is_locked().wait().unwrap());
    drop(held);
    assert_eq!(semaphore.available().wait().unwrap(), 3);
}
