//! Several processes with one manager.

use integration_tests::{Board, Row, rows};
use polypool::manager::{
    Address, AuthKey, BindTo, ClientSecurity, DictProxy, Manager, ManagerError, ManagerProxy, set_security,
};
use polypool::{ExecutorExt, ProcessPool, ThreadPool};

use crate::common::{
    both, count_up, count_up_locked, hold_lock, hold_permit, methods, pool, run_and_kill, soon, take_item,
};

pub(crate) const ROWS: &[Row<fn()>] = rows![
    updates_of_several_processes_are_all_counted,
    a_lock_makes_several_steps_one,
    insert_if_absent_has_one_winner,
    proxies_are_results_and_arguments,
    a_killed_process_poisons_its_lock,
    a_killed_process_gives_its_permit_back,
    a_killed_process_is_not_waited_for_by_join,
    workers_need_the_key_of_a_tcp_manager,
];

#[polypool::task]
fn try_insert(dict: DictProxy<String, u32>) -> bool {
    dict.insert_if_absent(&"winner".to_owned(), &std::process::id()).wait().expect("a manager").is_none()
}

#[polypool::task]
fn make_dict(manager: ManagerProxy) -> DictProxy<String, u32> {
    let dict = manager.dict().wait().expect("a dict");
    dict.insert(&"pid".to_owned(), &std::process::id()).wait().expect("an insert");
    dict
}

#[polypool::task]
fn use_key(key: Vec<u8>, address: Address) {
    set_security(&address, ClientSecurity::new().key(AuthKey::new(key).expect("a key")));
}

fn updates_of_several_processes_are_all_counted() {
    both(|manager| {
        for method in methods() {
            let dict = manager.dict::<String, u64>().wait().unwrap();
            let pool = pool(*method, 3);
            let tasks = [(); 3].map(|()| pool.submit(count_up { dict: dict.clone(), times: 300 }));
            for task in tasks {
                soon(task).unwrap().unwrap();
            }
            let threads = ThreadPool::builder().workers(2).build().unwrap();
            let tasks = [(); 2].map(|()| threads.submit(count_up { dict: dict.clone(), times: 300 }));
            for task in tasks {
                soon(task).unwrap().unwrap();
            }
            assert_eq!(dict.get(&"n".to_owned()).wait().unwrap(), Some(5 * 300));
        }
    });
}

fn a_lock_makes_several_steps_one() {
    both(|manager| {
        let (dict, lock) = (manager.dict::<String, u64>().wait().unwrap(), manager.lock().wait().unwrap());
        let pool = pool(methods()[0], 3);
        let task = || count_up_locked { dict: dict.clone(), lock: lock.clone(), times: 100 };
        let tasks = [(); 3].map(|()| pool.submit(task()));
        for task in tasks {
            soon(task).unwrap().unwrap();
        }
        assert_eq!(dict.get(&"n".to_owned()).wait().unwrap(), Some(300));
    });
}

fn insert_if_absent_has_one_winner() {
    let manager = Manager::start().unwrap();
    let pool = pool(methods()[0], 3);
    for _ in 0..20 {
        let dict = manager.dict().wait().unwrap();
        let tasks = [(); 6].map(|()| pool.submit(try_insert { dict: dict.clone() }));
        assert_eq!(tasks.into_iter().filter(|_| true).map(|task| u32::from(soon(task).unwrap())).sum::<u32>(), 1);
    }
}

fn proxies_are_results_and_arguments() {
    both(|manager| {
        for method in methods() {
            let pool = pool(*method, 1);
            let dict = soon(pool.submit(make_dict { manager: manager.proxy() })).unwrap();
            // The worker has dropped its proxy; the object was kept for this one.
            assert_ne!(dict.get(&"pid".to_owned()).wait().unwrap(), Some(std::process::id()));
        }
        let objects = || manager.stats().wait().unwrap().objects;
        let before = objects();
        let dict = manager.dict::<u8, u8>().wait().unwrap();
        assert_eq!(objects(), before + 1);
        drop(dict);
        // Nobody refers to it any more.
        assert_eq!(objects(), before);
    });
}

fn a_killed_process_poisons_its_lock() {
    both(|manager| {
        let board = Board::new();
        let gate = board.gate("held");
        let lock = manager.lock().wait().unwrap();
        run_and_kill(hold_lock { lock: lock.clone(), gate: gate.clone() }, &gate);
        let error = lock.lock().wait().unwrap_err();
        assert!(matches!(error, ManagerError::Poisoned { pid } if pid != std::process::id()), "{error}");
        assert!(matches!(lock.try_lock().wait(), Err(ManagerError::Poisoned { .. })));
        drop(lock.repair().wait().unwrap());
        drop(lock.lock().wait().unwrap());
    });
}

fn a_killed_process_gives_its_permit_back() {
    both(|manager| {
        let board = Board::new();
        let gate = board.gate("held");
        let semaphore = manager.bounded_semaphore(1).wait().unwrap();
        run_and_kill(hold_permit { semaphore: semaphore.clone(), gate: gate.clone() }, &gate);
        drop(semaphore.acquire().wait().unwrap());
    });
}

fn a_killed_process_is_not_waited_for_by_join() {
    both(|manager| {
        let board = Board::new();
        let gate = board.gate("held");
        let queue = manager.queue::<u64>().wait().unwrap();
        queue.put(&1).wait().unwrap();
        run_and_kill(take_item { queue: queue.clone(), gate: gate.clone() }, &gate);
        assert_eq!(queue.join().wait().unwrap(), 1);
    });
}

fn workers_need_the_key_of_a_tcp_manager() {
    let key = AuthKey::random().unwrap();
    let bind = || BindTo::Tcp { host: "127.0.0.1".to_owned(), port: 0, tls: false };
    assert!(Manager::builder().bind(bind()).in_thread().is_err(), "TCP needs a key");
    let builder = Manager::builder().bind(bind()).auth_key(key.clone());
    for manager in [builder.clone().in_thread().unwrap(), builder.start().unwrap()] {
        let dict = manager.dict::<String, u64>().wait().unwrap();
        let stranger = pool(methods()[0], 1);
        let error = soon(stranger.submit(count_up { dict: dict.clone(), times: 1 })).unwrap().unwrap_err();
        assert!(error.contains("set_security"), "{error}");
        let knows = use_key { key: key.expose().to_vec(), address: manager.address().clone() };
        let told = ProcessPool::builder().workers(1).initializer(knows).build().unwrap();
        soon(told.submit(count_up { dict: dict.clone(), times: 9 })).unwrap().unwrap();
        assert_eq!(dict.get(&"n".to_owned()).wait().unwrap(), Some(9));
    }
}
