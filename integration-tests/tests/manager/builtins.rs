//! Each type that every manager has, with a server here and in a process of its own.

use std::time::Duration;

use integration_tests::{Row, eventually, millis, rows, seconds};
use polypool::manager::{Manager, ManagerError};

use crate::common::{add, both, plus, spoil};

pub(crate) const ROWS: &[Row<fn()>] = rows![
    dict,
    dict_updates_are_whole_or_not_at_all,
    list,
    lists_are_sorted,
    whole_containers_are_updated_in_one_step,
    updates_of_the_whole_that_fail_change_nothing,
    set_and_namespace_and_value,
    queue_is_first_in_first_out,
    queue_waits_are_taken_back,
    lock,
    rlock,
    condition,
    event,
    semaphore,
    barrier,
    calls_can_be_awaited_and_started,
];

fn key(text: &str) -> String {
    text.to_owned()
}

fn dict() {
    both(|manager| {
        let dict = manager.dict::<String, Option<u8>>().wait().unwrap();
        assert_eq!(dict.insert(&key("b"), &Some(1)).wait().unwrap(), None);
        assert_eq!(dict.insert(&key("a"), &None).wait().unwrap(), None);
        // A value that is `None` is not an absent one.
        assert_eq!(dict.get(&key("a")).wait().unwrap(), Some(None));
        assert_eq!(dict.get(&key("x")).wait().unwrap(), None);
        assert_eq!(dict.insert(&key("b"), &Some(2)).wait().unwrap(), Some(Some(1)));
        assert_eq!(dict.keys().wait().unwrap(), ["b", "a"]);
        assert_eq!(dict.values().wait().unwrap(), [Some(2), None]);
        assert_eq!(dict.items().wait().unwrap(), [(key("b"), Some(2)), (key("a"), None)]);
        assert_eq!(dict.insert_if_absent(&key("a"), &Some(9)).wait().unwrap(), Some(None));
        assert_eq!(dict.insert_if_absent(&key("c"), &Some(3)).wait().unwrap(), None);
        assert_eq!(dict.compare_and_swap(&key("c"), Some(&Some(4)), None).wait().unwrap(), Err(Some(Some(3))));
        assert_eq!(dict.compare_and_swap(&key("c"), Some(&Some(3)), None).wait().unwrap(), Ok(()));
        assert_eq!(dict.compare_and_swap(&key("d"), None, Some(&Some(5))).wait().unwrap(), Ok(()));
        assert!(dict.contains(&key("d")).wait().unwrap());
        assert_eq!(dict.pop().wait().unwrap(), Some((key("d"), Some(5))));
        assert_eq!(dict.remove(&key("b")).wait().unwrap(), Some(Some(2)));
        dict.extend([(&key("e"), &Some(1)), (&key("f"), &None)]).wait().unwrap();
        assert_eq!(dict.len().wait().unwrap(), 3);
        dict.clear().wait().unwrap();
        assert_eq!(dict.len().wait().unwrap(), 0);
    });
}

fn dict_updates_are_whole_or_not_at_all() {
    both(|manager| {
        let dict = manager.dict::<String, u64>().wait().unwrap();
        assert_eq!(dict.update(&key("n"), add { n: 2 }).wait().unwrap(), 2);
        assert_eq!(dict.update(&key("n"), add { n: 3 }).wait().unwrap(), 5);
        let error = dict.update(&key("n"), spoil {}).wait().unwrap_err();
        let ManagerError::Panicked(report) = error else { panic!("{error}") };
        assert_eq!(report.message.as_deref(), Some("spoilt"));
        assert!(report.location.as_ref().is_some_and(|place| place.file.ends_with("common.rs")));
        assert_eq!(dict.get(&key("n")).wait().unwrap(), Some(5));
    });
}

fn list() {
    both(|manager| {
        let list = manager.list::<u64>().wait().unwrap();
        list.extend(&[3, 1, 2]).wait().unwrap();
        list.push(&1).wait().unwrap();
        list.insert(0, &9).wait().unwrap();
        assert_eq!(list.items().wait().unwrap(), [9, 3, 1, 2, 1]);
        assert_eq!(list.slice(1..3).wait().unwrap(), [3, 1]);
        assert_eq!(list.slice(4..99).wait().unwrap(), [1]);
        assert_eq!(list.set(0, &8).wait().unwrap(), 9);
        assert_eq!(list.get(0).wait().unwrap(), Some(8));
        assert_eq!(list.get(7).wait().unwrap(), None);
        assert!(matches!(list.set(7, &0).wait(), Err(ManagerError::OutOfRange { index: 7, len: 5 })));
        assert_eq!(list.count(&1).wait().unwrap(), 2);
        assert_eq!(list.index(&1).wait().unwrap(), Some(2));
        assert!(list.contains(&2).wait().unwrap() && !list.contains(&7).wait().unwrap());
        list.reverse().wait().unwrap();
        assert_eq!(list.pop().wait().unwrap(), Some(8));
        assert_eq!(list.remove(0).wait().unwrap(), 1);
        assert!(list.remove_value(&1).wait().unwrap());
        assert_eq!(list.update(0, plus { n: 5 }).wait().unwrap(), 7);
        assert_eq!(list.compare_and_swap(0, &1, &2).wait().unwrap(), Err(7));
        assert_eq!(list.compare_and_swap(0, &7, &2).wait().unwrap(), Ok(()));
        assert_eq!(list.items().wait().unwrap(), [2, 3]);
        list.clear().wait().unwrap();
        assert_eq!(list.len().wait().unwrap(), 0);
        assert_eq!(list.pop().wait().unwrap(), None);
    });
}

fn set_and_namespace_and_value() {
    both(|manager| {
        let set = manager.set::<String>().wait().unwrap();
        assert!(set.insert(&key("a")).wait().unwrap() && !set.insert(&key("a")).wait().unwrap());
        assert_eq!(set.extend(&[key("a"), key("b")]).wait().unwrap(), 1);
        assert_eq!(set.items().wait().unwrap(), ["a", "b"]);
        assert!(set.remove(&key("a")).wait().unwrap() && !set.contains(&key("a")).wait().unwrap());
        assert_eq!(set.len().wait().unwrap(), 1);

        let space = manager.namespace().wait().unwrap();
        space.set("x", &10u8).wait().unwrap();
        space.set("y", &key("hello")).wait().unwrap();
        assert_eq!(space.get::<u8>("x").wait().unwrap(), Some(10));
        assert_eq!(space.get::<String>("y").wait().unwrap().as_deref(), Some("hello"));
        assert!(matches!(space.get::<u8>("y").wait(), Err(ManagerError::Codec(_))));
        assert_eq!(space.update::<u64, _>("x", add { n: 1 }).wait().unwrap(), 11);
        assert_eq!(space.names().wait().unwrap(), ["x", "y"]);
        assert!(space.remove("x").wait().unwrap());
        assert_eq!(space.get::<u8>("x").wait().unwrap(), None);

        let value = manager.value(&5u64).wait().unwrap();
        assert_eq!(value.update(plus { n: 2 }).wait().unwrap(), 7);
        assert_eq!(value.swap(&1).wait().unwrap(), 7);
        assert_eq!(value.compare_and_swap(&7, &2).wait().unwrap(), Err(1));
        assert_eq!(value.compare_and_swap(&1, &2).wait().unwrap(), Ok(()));
        value.set(&3).wait().unwrap();
        assert_eq!(value.get().wait().unwrap(), 3);
    });
}

fn queue_is_first_in_first_out() {
    both(|manager| {
        let queue = manager.bounded_queue::<u64>(2).wait().unwrap();
        assert!(matches!(queue.get_timeout(millis(5)).wait(), Err(ManagerError::TimedOut)));
        assert!(matches!(queue.get_timeout(Duration::ZERO).wait(), Err(ManagerError::TimedOut)));
        assert_eq!(queue.try_get().wait().unwrap(), None);
        queue.put(&1).wait().unwrap();
        assert!(queue.try_put(&2).wait().unwrap() && !queue.try_put(&3).wait().unwrap());
        assert!(matches!(queue.put_timeout(&3, millis(5)).wait(), Err(ManagerError::TimedOut)));
        let third = queue.put(&3).start();
        assert_eq!(queue.get().wait().unwrap(), 1);
        third.wait().unwrap();
        assert_eq!(queue.len().wait().unwrap(), 2);
        assert_eq!(queue.capacity().wait().unwrap(), Some(2));

        let joined = queue.join().start();
        assert!(matches!(queue.join_timeout(millis(5)).wait(), Err(ManagerError::TimedOut)));
        assert_eq!((queue.get().wait().unwrap(), queue.get().wait().unwrap()), (2, 3));
        for _ in 0..3 {
            queue.task_done().wait().unwrap();
        }
        assert_eq!(joined.wait().unwrap(), 0);
        assert!(matches!(queue.task_done().wait(), Err(ManagerError::NotHeld(_))));

        queue.put(&4).wait().unwrap();
        queue.close().wait().unwrap();
        assert!(matches!(queue.put(&5).wait(), Err(ManagerError::Closed)));
        assert_eq!(queue.get().wait().unwrap(), 4);
        assert!(matches!(queue.get().wait(), Err(ManagerError::Closed)));
    });
}

fn queue_waits_are_taken_back() {
    both(|manager| {
        let queue = manager.queue::<u64>().wait().unwrap();
        for n in 0..200 {
            // Whether the item or the cancellation is quicker, the item is not lost.
            let wait = queue.get().start();
            let put = queue.put(&n).start();
            drop(wait);
            put.wait().unwrap();
            assert_eq!(queue.get_timeout(seconds(10)).wait().unwrap(), n);
        }
        for n in 0..200 {
            queue.put(&n).wait().unwrap();
            drop(queue.try_get().start());
            drop(queue.try_get());
            assert_eq!(queue.get_timeout(seconds(10)).wait().unwrap(), n);
            assert_eq!(queue.try_get().wait().unwrap(), None);
        }
    });
}

fn lock() {
    both(|manager| {
        let lock = manager.lock().wait().unwrap();
        let guard = lock.lock().wait().unwrap();
        assert!(lock.is_locked().wait().unwrap());
        assert!(matches!(lock.try_lock().wait(), Err(ManagerError::TimedOut)));
        assert!(matches!(lock.lock_timeout(millis(5)).wait(), Err(ManagerError::TimedOut)));
        let next = lock.lock().start();
        std::thread::spawn(move || drop(guard)).join().unwrap();
        drop(next.wait().unwrap());
        // A wait that is given up does not keep the lock.
        for _ in 0..100 {
            let guard = lock.lock().wait().unwrap();
            let wait = lock.lock().start();
            drop(guard);
            drop(wait);
        }
        drop(lock.lock_timeout(seconds(10)).wait().unwrap());
    });
}

fn rlock() {
    both(|manager| {
        let lock = manager.rlock().wait().unwrap();
        let first = lock.lock().wait().unwrap();
        let second = lock.lock().wait().unwrap();
        let elsewhere = || {
            let lock = lock.clone();
            std::thread::spawn(move || lock.try_lock().wait().is_ok()).join().unwrap()
        };
        drop(first);
        assert!(!elsewhere());
        drop(second);
        assert!(elsewhere());
    });
}

fn condition() {
    both(|manager| {
        let condition = manager.condition().wait().unwrap();
        let guard = condition.lock().wait().unwrap();
        assert!(!guard.wait_timeout(millis(5)).wait().unwrap());
        let waiting = guard.wait().start();
        // The lock was let go by the wait.
        let other = condition.lock().wait().unwrap();
        other.notify_one().wait().unwrap();
        drop(other);
        assert!(waiting.wait().unwrap());
        drop(guard);
        drop(condition.lock().wait().unwrap());
    });
}

fn event() {
    both(|manager| {
        let event = manager.event().wait().unwrap();
        assert!(matches!(event.wait_timeout(millis(5)).wait(), Err(ManagerError::TimedOut)));
        let waits = [event.wait().start(), event.wait().start()];
        event.set().wait().unwrap();
        for wait in waits {
            wait.wait().unwrap();
        }
        assert!(event.is_set().wait().unwrap());
        event.wait().wait().unwrap();
        event.clear().wait().unwrap();
        assert!(!event.is_set().wait().unwrap());
    });
}

fn semaphore() {
    both(|manager| {
        let semaphore = manager.semaphore(2).wait().unwrap();
        let one = semaphore.acquire().wait().unwrap();
        let two = semaphore.try_acquire().wait().unwrap();
        assert!(matches!(semaphore.try_acquire().wait(), Err(ManagerError::TimedOut)));
        let many = semaphore.acquire_many(2).start();
        // Who came first is not overtaken.
        drop(one);
        assert!(matches!(semaphore.acquire_timeout(millis(5)).wait(), Err(ManagerError::TimedOut)));
        drop(two);
        let many = many.wait().unwrap();
        assert_eq!(many.permits(), 2);
        semaphore.add_permits(1).wait().unwrap();
        assert_eq!(semaphore.available().wait().unwrap(), 1);
        drop(many);
        assert_eq!(semaphore.available().wait().unwrap(), 3);

        let bounded = manager.bounded_semaphore(1).wait().unwrap();
        assert!(matches!(bounded.add_permits(1).wait(), Err(ManagerError::NotHeld(_))));
        assert!(matches!(bounded.acquire_many(2).wait(), Err(ManagerError::NotHeld(_))));
    });
}

fn barrier() {
    both(|manager| {
        let barrier = manager.barrier(3).wait().unwrap();
        for _ in 0..300 {
            let calls: Vec<_> = (0..3).map(|_| barrier.wait().start()).collect();
            let mut places: Vec<u64> = calls.into_iter().map(|call| call.wait().unwrap()).collect();
            places.sort_unstable();
            assert_eq!(places, [0, 1, 2]);
        }
        let other = barrier.wait().start();
        assert!(matches!(barrier.wait_timeout(millis(5)).wait(), Err(ManagerError::TimedOut)));
        assert!(matches!(other.wait(), Err(ManagerError::BarrierBroken)));
        assert!(matches!(barrier.wait().wait(), Err(ManagerError::BarrierBroken)));
        assert!(barrier.state().wait().unwrap().broken);
        barrier.reset().wait().unwrap();
        let waiting = barrier.wait().start();
        assert!(eventually(seconds(10), || barrier.state().wait().unwrap().waiting == 1));
        barrier.abort().wait().unwrap();
        assert!(matches!(waiting.wait(), Err(ManagerError::BarrierBroken)));
        // The seat of a wait that is given up is free.
        barrier.reset().wait().unwrap();
        drop(barrier.wait().start());
        assert!(eventually(seconds(10), || barrier.state().wait().unwrap().waiting == 0));
        assert!(matches!(manager.barrier(0).wait(), Err(ManagerError::Constructor(_))));
        // Who may not wait, because too many calls do already, doesn't break it for the others.
        let event = manager.event().wait().unwrap();
        let waits: Vec<_> = (0..65_536).map(|_| event.wait().start()).collect();
        assert!(matches!(barrier.wait().wait(), Err(ManagerError::Throttled { .. })));
        assert!(!barrier.state().wait().unwrap().broken);
        event.set().wait().unwrap();
        for wait in waits {
            wait.wait().unwrap();
        }
    });
}

fn calls_can_be_awaited_and_started() {
    both(|manager: &Manager| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dict = manager.dict::<u64, u64>().await.unwrap();
            let calls: Vec<_> = (0..1_000).map(|n| dict.insert(&n, &(n * 2)).start()).collect();
            for call in calls {
                assert_eq!(call.await.unwrap(), None);
            }
            let all = futures_util::future::join_all((0..1_000).map(|n| dict.get(&n))).await;
            for (n, value) in (0..).zip(all) {
                assert_eq!(value.unwrap(), Some(n * 2));
            }
            let queue = manager.queue::<u64>().await.unwrap();
            let (got, put) = futures_util::join!(queue.get(), queue.put(&7));
            assert_eq!((got.unwrap(), put.unwrap()), (7, ()));
        });
        // And many threads on one connection.
        let value = manager.value(&0u64).wait().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        value.update(plus { n: 1 }).wait().unwrap();
                    }
                });
            }
        });
        assert_eq!(value.get().wait().unwrap(), 800);
    });
}

fn lists_are_sorted() {
    both(|manager| {
        let numbers = manager.list::<(i64, String)>().wait().unwrap();
        let items = [(2, key("b")), (-1, key("c")), (2, key("a")), (300, key("")), (-70_000, key("x"))];
        numbers.extend(&items).wait().unwrap();
        let mut sorted = items.to_vec();
        sorted.sort();
        numbers.sort().wait().unwrap();
        assert_eq!(numbers.items().wait().unwrap(), sorted);
        numbers.sort_descending().wait().unwrap();
        sorted.reverse();
        assert_eq!(numbers.items().wait().unwrap(), sorted);
        numbers.reverse().wait().unwrap();
        assert_eq!(numbers.get(0).wait().unwrap(), Some((-70_000, key("x"))));
        let floats = manager.list::<f64>().wait().unwrap();
        floats.extend(&[0.5, -2.0, f64::INFINITY]).wait().unwrap();
        floats.sort().wait().unwrap();
        assert_eq!(floats.items().wait().unwrap(), [-2.0, 0.5, f64::INFINITY]);
    });
}

#[polypool::update]
fn set_default(all: &mut std::collections::HashMap<String, u64>, name: String, to: u64) -> u64 {
    *all.entry(name).or_insert(to)
}

#[polypool::update]
fn double_the_even(all: &mut Vec<u64>) -> usize {
    let before = all.len();
    all.extend(all.clone().into_iter().filter(|n| n % 2 == 0));
    all.len() - before
}

#[polypool::update]
fn keep_below(all: &mut std::collections::BTreeSet<u64>, limit: u64) {
    *all = all.split_off(&0).into_iter().filter(|n| *n < limit).chain([0]).collect();
}

#[polypool::update]
fn clear_and_fall(all: &mut Vec<u64>) {
    all.clear();
    panic!("fell");
}

#[polypool::task]
fn count_up_whole(dict: polypool::manager::DictProxy<String, u64>, times: u64) {
    for _ in 0..times {
        dict.update_all(add_to_all { n: 1 }).wait().expect("the step");
    }
}

#[polypool::update]
fn add_to_all(all: &mut std::collections::BTreeMap<String, u64>, n: u64) {
    all.values_mut().for_each(|count| *count += n);
}

fn whole_containers_are_updated_in_one_step() {
    both(|manager| {
        let dict = manager.dict::<String, u64>().wait().unwrap();
        dict.extend([(&key("z"), &1), (&key("b"), &2)]).wait().unwrap();
        assert_eq!(dict.update_all(set_default { name: key("a"), to: 3 }).wait().unwrap(), 3);
        assert_eq!(dict.update_all(set_default { name: key("a"), to: 4 }).wait().unwrap(), 3);
        // Those that were there before have kept their places.
        assert_eq!(dict.keys().wait().unwrap(), ["z", "b", "a"]);

        let pool = crate::common::pool(polypool::StartMethod::Spawn, 2);
        let tasks =
            [(); 2].map(|()| polypool::ExecutorExt::submit(&pool, count_up_whole { dict: dict.clone(), times: 100 }));
        tasks.into_iter().for_each(|task| crate::common::soon(task).unwrap());
        assert_eq!(dict.values().wait().unwrap(), [201, 202, 203]);
        assert_eq!(dict.pop().wait().unwrap(), Some((key("a"), 203)));

        let list = manager.list::<u64>().wait().unwrap();
        list.extend(&[1, 2, 3, 4]).wait().unwrap();
        assert_eq!(list.update_all(double_the_even {}).wait().unwrap(), 2);
        assert_eq!(list.items().wait().unwrap(), [1, 2, 3, 4, 2, 4]);

        let set = manager.set::<u64>().wait().unwrap();
        set.extend(&[7, 3, 5]).wait().unwrap();
        set.update_all(keep_below { limit: 6 }).wait().unwrap();
        assert_eq!(set.items().wait().unwrap(), [3, 5, 0]);
        assert_eq!(set.pop().wait().unwrap(), Some(0));
        assert_eq!((set.pop().wait().unwrap(), set.pop().wait().unwrap()), (Some(5), Some(3)));
        assert_eq!(set.pop().wait().unwrap(), None);
    });
}

fn updates_of_the_whole_that_fail_change_nothing() {
    both(|manager| {
        let list = manager.list::<u64>().wait().unwrap();
        list.extend(&[3, 1, 2]).wait().unwrap();
        let error = list.update_all(clear_and_fall {}).wait().unwrap_err();
        assert!(
            matches!(&error, ManagerError::Panicked(report) if report.message.as_deref() == Some("fell")),
            "{error}"
        );
        assert_eq!(list.items().wait().unwrap(), [3, 1, 2]);
    });
}
