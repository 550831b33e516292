//! `Value`, `Array` and atomics: what they do in one process, between several, and when one of them is killed in the
//! middle.

#![cfg(any(target_os = "linux", target_os = "android"))]

#[path = "common/family.rs"]
mod family;

use std::fs::File;
use std::future::Future;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use family::{LIMIT, Peer, child};
use polypool_ipc::{
    Array, ArrayError, AtomicArray, AtomicValue, LockError, Luggage, SharedMemory, Value, pack, unpack,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zerocopy::{FromBytes, Immutable, IntoBytes};

polypool_ipc::before_main!(roles);

fn roles() {
    family::run_roles(&[
        ("adder", adder),
        ("tallier", tallier),
        ("smearer", smearer),
        ("spoiler", spoiler),
        ("looker", looker),
        ("big_looker", big_looker),
        ("holder", holder),
        ("swapper", swapper),
        ("counts_fds", counts_fds),
    ]);
}

const SHORT: Duration = Duration::from_millis(20);

/// What the other process gets when this is sent.
fn travelled<T: Serialize + DeserializeOwned>(handle: &T) -> T {
    let (bytes, luggage) = pack(|| serde_json::to_vec(handle).unwrap());
    let fds = luggage.fds().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    unpack(&Luggage::new(fds), || serde_json::from_slice(&bytes)).unwrap()
}

/// The memory of an object as a file, for a peer that lies.
fn memory_of(handle: &impl Serialize) -> File {
    let (_, luggage) = pack(|| serde_json::to_vec(handle).unwrap());
    File::from(luggage.fds().next().unwrap().as_fd().try_clone_to_owned().unwrap())
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<R>(future: impl Future<Output = R>) -> R {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let until = Instant::now() + LIMIT;
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return result;
        }
        assert!(Instant::now() < until, "a future is pending for {LIMIT:?}");
        thread::park_timeout(LIMIT);
    }
}

fn is_pending(future: impl Future) -> bool {
    pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

#[derive(Clone, Copy, PartialEq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Tally {
    count: u64,
    of_child: [u64; 8],
}

impl Tally {
    fn is_whole(&self) -> bool {
        self.count == self.of_child.iter().sum::<u64>()
    }
}

// ---- Value

#[test]
fn a_value_is_read_set_and_changed() {
    let value = Value::new(5_i32).unwrap();
    assert_eq!(value.get(), 5);
    value.set(-7);
    assert_eq!(value.with(|v| std::mem::replace(v, 8)), -7);
    assert_eq!(value.replace(9), 8);
    assert_eq!(value.compare_exchange(8, 1), Err(9));
    assert_eq!(value.compare_exchange(9, 10), Ok(9));
    assert_eq!(value.get(), 10);
    assert_eq!(format!("{value:?}"), "Value(10)");
    // Wraps, as Python's.
    value.set(i32::MAX);
    value.with(|v| *v = v.wrapping_add(1));
    assert_eq!(value.get(), i32::MIN);
}

#[test]
fn values_of_all_sizes_are_whole() {
    fn check<T: polypool_ipc::Plain + PartialEq + std::fmt::Debug>(one: T, two: T) {
        let value = Value::new(one).unwrap();
        assert_eq!(value.get(), one);
        value.set(two);
        assert_eq!(value.get(), two);
        value.with(|v| *v = one);
        assert_eq!(*value.lock(), one);
        assert_eq!(travelled(&value).get(), one);
    }
    check((), ());
    check(1_u8, 2);
    check([1_u8; 3], [2; 3]);
    check(1_u16, 2);
    check(1.5_f32, -2.5);
    check(1.5_f64, -2.5);
    check(u128::MAX, 1);
    check([7_u8; 1001], [9; 1001]);
    check([7_u64; 1000], [9; 1000]);
}

#[test]
fn a_guard_commits_when_it_is_dropped_and_not_before() {
    let value = Value::new([1_u64, 2]).unwrap();
    let mut guard = value.lock();
    guard[0] = 10;
    assert_eq!(value.get(), [1, 2], "not yet");
    drop(guard);
    assert_eq!(value.get(), [10, 2]);
    let mut guard = value.lock();
    guard[1] = 20;
    guard.discard();
    assert_eq!(value.get(), [10, 2]);
}

#[test]
fn a_panic_changes_nothing_and_frees_the_lock() {
    let value = Value::new([0_u64; 8]).unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| {
        value.with(|v| {
            v[..4].fill(1);
            panic!("in the middle");
        })
    }));
    assert!(result.is_err());
    assert_eq!(value.try_with(|v| *v), Some([0; 8]));
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut guard = value.lock();
        guard[..4].fill(1);
        panic!("in the middle");
    }));
    assert!(result.is_err());
    assert_eq!(value.try_with(|v| *v), Some([0; 8]));
}

#[test]
fn who_does_not_want_to_wait_for_a_value_is_told() {
    let value = Value::new(0_u64).unwrap();
    let guard = value.lock();
    assert!(value.try_with(|_| ()).is_none());
    assert!(value.try_lock().is_none());
    let before = Instant::now();
    assert!(value.with_timeout(SHORT, |_| ()).is_none());
    assert!(value.lock_timeout(SHORT).is_none());
    assert!(before.elapsed() >= SHORT * 2);
    assert!(is_pending(value.with_async(|_| ())));
    assert_eq!(value.get(), 0, "reading needs no lock");
    assert!(!value.try_set(9) && !value.set_timeout(9, SHORT) && is_pending(value.set_async(9)));
    assert_eq!((value.try_replace(9), value.replace_timeout(9, SHORT)), (None, None));
    assert!(is_pending(value.replace_async(9)));
    assert_eq!((value.try_compare_exchange(0, 9), value.compare_exchange_timeout(0, 9, SHORT)), (None, None));
    assert!(is_pending(value.compare_exchange_async(0, 9)));
    drop(guard);
    assert_eq!(value.get(), 0, "nothing has happened");
    assert!(value.try_set(1) && value.set_timeout(2, SHORT));
    block_on(value.set_async(3));
    assert_eq!((value.try_replace(4), value.replace_timeout(5, SHORT)), (Some(3), Some(4)));
    assert_eq!(block_on(value.replace_async(6)), 5);
    assert_eq!(value.try_compare_exchange(6, 7), Some(Ok(6)));
    assert_eq!(value.compare_exchange_timeout(6, 8, SHORT), Some(Err(7)));
    assert_eq!(block_on(value.compare_exchange_async(7, 0)), Ok(7));
    assert_eq!(value.with_timeout(SHORT, |v| *v), Some(0));
    block_on(value.with_async(|v| *v += 1));
    *block_on(value.lock_async()) += 1;
    assert_eq!(value.get(), 2);
}

#[test]
fn a_future_gets_a_value_when_the_guard_goes() {
    let value = Value::new(0_u64).unwrap();
    let guard = value.lock();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| block_on(value.with_async(|v| *v += 1)));
        let blocked = scope.spawn(|| value.with(|v| *v += 1));
        // However far they are: both come through once the guard is gone, and not before.
        assert_eq!(value.get(), 0);
        drop(guard);
        waiting.join().unwrap();
        blocked.join().unwrap();
    });
    assert_eq!(value.get(), 2);
}

#[derive(Serialize, serde::Deserialize)]
struct Work {
    value: Value<u64>,
    array: Array<u64>,
    atomic: AtomicValue<u64>,
    float: AtomicValue<f64>,
    atomics: AtomicArray<u32>,
    times: u64,
}

fn adder(parent: &Peer) {
    let work: Work = parent.recv();
    for n in 0..work.times {
        match n % 3 {
            0 => work.value.with(|v| *v += 1),
            1 => *work.value.lock() += 1,
            _ => block_on(work.value.with_async(|v| *v += 1)),
        }
        match n % 3 {
            0 => work.array.with_element(1, |v| *v += 1).unwrap(),
            1 => work.array.lock().unwrap()[1] += 1,
            _ => block_on(work.array.with_element_async(1, |v| *v += 1)).unwrap(),
        }
        work.atomic.fetch_add(1, Relaxed);
        work.float.fetch_add(0.5, Relaxed);
        work.atomics[2].fetch_update(Relaxed, Relaxed, |v| Some(v + 1)).unwrap();
    }
}

#[test]
fn no_increment_is_lost_between_processes() {
    let times = 10_000;
    let work = Work {
        value: Value::new(0).unwrap(),
        array: Array::from_slice(&[7, 0, 7]).unwrap(),
        atomic: AtomicValue::new(0).unwrap(),
        float: AtomicValue::new(0.0).unwrap(),
        atomics: AtomicArray::new(3).unwrap(),
        times,
    };
    let children: Vec<_> = (0..4).map(|_| child("adder", &work)).collect();
    for child in children {
        child.join();
    }
    assert_eq!(work.value.get(), 4 * times);
    assert_eq!(work.array.to_vec().unwrap(), [7, 4 * times, 7]);
    assert_eq!(work.atomic.load(SeqCst), 4 * times);
    assert_eq!(work.float.load(SeqCst), 2.0 * times as f64);
    assert_eq!(work.atomics.to_vec(), [0, 0, 4 * times as u32]);
}

fn tallier(parent: &Peer) {
    let (tally, elements, me): (Value<Tally>, Array<Tally>, usize) = parent.recv();
    loop {
        let add = |tally: &mut Tally| {
            tally.count += 1;
            tally.of_child[me] += 1;
        };
        tally.with(add);
        elements.with_element(1, add).unwrap();
    }
}

#[test]
fn a_killed_process_has_made_a_change_or_not() {
    let zero = Tally { count: 0, of_child: [0; 8] };
    let tally = Value::new(zero).unwrap();
    let elements = Array::from_slice(&[zero; 3]).unwrap();
    let mut children: Vec<_> = (0..3).map(|me| child("tallier", &(&tally, &elements, me))).collect();
    for round in 0..60 {
        let victim = round % 3;
        // All of them get on: nobody waits for the dead.
        let before = (tally.get(), elements.get(1).unwrap());
        let until = Instant::now() + LIMIT;
        loop {
            let now = (tally.get(), elements.get(1).unwrap());
            assert!(now.0.is_whole() && now.1.is_whole(), "torn: {now:?}");
            if (0..3).all(|me| now.0.of_child[me] > before.0.of_child[me] && now.1.of_child[me] > before.1.of_child[me])
            {
                break;
            }
            assert!(Instant::now() < until, "stuck in round {round}");
        }
        children[victim].kill();
        children[victim] = child("tallier", &(&tally, &elements, victim));
    }
    drop(children);
    assert!(tally.with(|tally| tally.is_whole()));
    assert!(elements.get(1).unwrap().is_whole());
    assert_eq!((elements.get(0), elements.get(2)), (Ok(zero), Ok(zero)));
}

/// Large enough for most kills to come while it is being copied.
const WIDE: usize = 512;
type Wide = [u64; WIDE];

fn smearer(parent: &Peer) {
    let (value, array): (Value<Wide>, Array<Wide>) = parent.recv();
    for n in 0_u64.. {
        value.set([n; WIDE]);
        array.set(0, [n; WIDE]).unwrap();
    }
}

#[test]
fn no_torn_value_is_seen_while_writers_are_killed() {
    let value = Value::new([0_u64; WIDE]).unwrap();
    let array = Array::from_slice(&[[0_u64; WIDE]]).unwrap();
    let check = |words: Wide| assert!(words.iter().all(|word| *word == words[0]), "torn");
    for round in 0..30 {
        let mut children = [0, 1].map(|_| child("smearer", &(&value, &array)));
        let (first, last) = (value.get(), 500 + round * 100);
        let until = Instant::now() + LIMIT;
        for n in 0.. {
            check(value.get());
            check(array.get(0).unwrap());
            if n > last && value.get() != first {
                break;
            }
            assert!(Instant::now() < until, "nobody writes");
        }
        for child in &mut children {
            child.kill();
        }
        check(value.get());
        check(value.with(|v| *v));
        check(array.get(0).unwrap());
    }
}

fn holder(parent: &Peer) {
    let (value, array): (Value<u64>, Array<u64>) = parent.recv();
    let mut guard = value.lock();
    *guard = 99;
    let elements = array.lock().unwrap();
    parent.send("held");
    parent.recv::<String>();
    drop((guard, elements));
}

#[test]
fn a_future_and_a_blocked_thread_learn_of_the_holders_death() {
    let value = Value::new(1_u64).unwrap();
    let array = Array::from_slice(&[1_u64]).unwrap();
    let mut holder = child("holder", &(&value, &array));
    holder.expect("held");
    assert!(value.try_lock().is_none());
    assert!(matches!(array.try_lock(), Err(LockError::WouldBlock)));
    assert!(matches!(array.lock_timeout(SHORT), Err(LockError::TimedOut)));
    assert_eq!(value.get(), 1);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| block_on(value.with_async(|v| *v += 1)));
        let blocked = scope.spawn(|| value.with(|v| *v += 1));
        // It only read the elements.
        let element = scope.spawn(|| block_on(array.with_element_async(0, |v| *v += 1)).unwrap());
        let slice = scope.spawn(|| block_on(array.lock_async()).unwrap()[0] += 1);
        holder.kill();
        for thread in [waiting, blocked, element, slice] {
            thread.join().unwrap();
        }
    });
    assert_eq!(value.get(), 3, "what the dead one had in its guard has never happened");
    assert_eq!(array.to_vec().unwrap(), [3]);
}

// ---- Array

#[test]
fn an_array_is_read_and_written_by_element_and_by_slice() {
    let array = Array::<i32>::new(5).unwrap();
    assert_eq!(array.to_vec().unwrap(), [0; 5]);
    array.set(4, -4).unwrap();
    assert_eq!(array.get(4), Ok(-4));
    assert_eq!(array.with_element(4, |v| std::mem::replace(v, 40)), Ok(-4));
    array.store_to(1, &[1, 2]).unwrap();
    let mut two = [0; 2];
    array.load_from(2, &mut two).unwrap();
    assert_eq!(two, [2, 0]);
    {
        let mut guard = array.lock().unwrap();
        guard.sort_by_key(|v| -v);
        assert_eq!(*guard, [40, 2, 1, 0, 0]);
        assert_eq!(format!("{guard:?}"), "[40, 2, 1, 0, 0]");
    }
    assert_eq!(array.with(|all| all.iter().sum::<i32>()), Ok(43));
    assert_eq!(array.iter().unwrap().max(), Some(40));
    assert_eq!((array.len(), array.is_empty()), (5, false));
}

#[test]
fn what_is_outside_of_an_array_is_refused() {
    let array = Array::<u8>::new(3).unwrap();
    let error = array.get(3).unwrap_err();
    assert!(matches!(error, ArrayError::OutOfRange { index: 3, count: 1, len: 3, .. }));
    assert_eq!(error.to_string(), "the array has 3 elements, and 1 from 3 on are not all among them");
    assert!(array.set(usize::MAX, 1).is_err());
    assert!(array.with_element(3, |_| ()).is_err());
    assert!(array.load_from(2, &mut [0; 2]).is_err());
    assert!(array.store_to(usize::MAX, &[0; 2]).is_err());
    assert!(array.store_to(3, &[]).is_ok());
    assert!(Array::<u64>::new(usize::MAX).is_err());
    assert!(Array::<u8>::new(usize::MAX).is_err());
    let empty = Array::<u64>::new(0).unwrap();
    assert!(empty.is_empty() && empty.lock().unwrap().is_empty() && empty.get(0).is_err());
    assert!(travelled(&empty).is_empty());
}

#[test]
fn elements_stand_where_their_type_wants_them() {
    #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
    #[repr(C, align(256))]
    struct Wide([u8; 256]);
    #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
    #[repr(C, align(8192))]
    struct TooWide([u8; 8192]);

    let array = Array::from_slice(&[Wide([3; 256]); 3]).unwrap();
    array.set(1, Wide([4; 256])).unwrap();
    let guard = array.lock().unwrap();
    assert_eq!(guard.as_ptr().addr() % 256, 0);
    assert_eq!([0, 1, 2].map(|i| guard[i].0[255]), [3, 4, 3]);
    assert!(Array::<TooWide>::new(1).is_err());
}

#[test]
fn an_array_has_the_waiting_forms() {
    let array = Array::<u64>::new(1).unwrap();
    let guard = array.lock().unwrap();
    assert!(matches!(array.try_lock(), Err(LockError::WouldBlock)));
    assert!(matches!(array.lock_timeout(SHORT), Err(LockError::TimedOut)));
    assert!(is_pending(array.lock_async()));
    assert!(is_pending(array.with_element_async(0, |_| ())));
    let mut one = [1];
    let refused: [Result<(), ArrayError>; 12] = [
        array.try_get(0).map(drop),
        array.try_set(0, 1),
        array.try_with_element(0, |_| ()),
        array.try_to_vec().map(drop),
        array.try_load_from(0, &mut one),
        array.try_store_to(0, &[1]),
        array.get_timeout(0, SHORT).map(drop),
        array.set_timeout(0, 1, SHORT),
        array.with_element_timeout(0, SHORT, |_| ()),
        array.to_vec_timeout(SHORT).map(drop),
        array.load_from_timeout(0, &mut one, SHORT),
        array.store_to_timeout(0, &[1], SHORT),
    ];
    assert_eq!(refused[..6], [Err(ArrayError::WouldBlock); 6]);
    assert_eq!(refused[6..], [Err(ArrayError::TimedOut); 6]);
    assert_eq!(array.try_with(|_| ()), Err(ArrayError::WouldBlock));
    assert_eq!(array.with_timeout(SHORT, |_| ()), Err(ArrayError::TimedOut));
    assert!(
        is_pending(array.get_async(0)) && is_pending(array.set_async(0, 1)) && is_pending(array.with_async(|_| ()))
    );
    assert!(is_pending(array.load_from_async(0, &mut one)) && is_pending(array.store_to_async(0, &[1])));
    assert!(is_pending(array.to_vec_async()));
    assert_eq!(array.try_get(1), array.get(1));
    assert!(matches!(block_on(array.set_async(1, 1)), Err(ArrayError::OutOfRange { .. })), "said at once");
    drop(guard);
    assert_eq!((array.to_vec(), one), (Ok(vec![0]), [1]), "nothing has happened");
    assert_eq!((array.try_set(0, 1), array.try_get(0)), (Ok(()), Ok(1)));
    assert_eq!((array.set_timeout(0, 2, SHORT), array.get_timeout(0, SHORT)), (Ok(()), Ok(2)));
    assert_eq!((block_on(array.set_async(0, 3)), block_on(array.get_async(0))), (Ok(()), Ok(3)));
    assert_eq!(array.try_with_element(0, |e| std::mem::replace(e, 4)), Ok(3));
    assert_eq!(array.with_element_timeout(0, SHORT, |e| std::mem::replace(e, 5)), Ok(4));
    assert_eq!(array.try_with(|all| std::mem::replace(&mut all[0], 6)), Ok(5));
    assert_eq!(array.with_timeout(SHORT, |all| std::mem::replace(&mut all[0], 7)), Ok(6));
    assert_eq!(block_on(array.with_async(|all| std::mem::replace(&mut all[0], 8))), Ok(7));
    assert_eq!((array.try_to_vec(), array.to_vec_timeout(SHORT)), (Ok(vec![8]), Ok(vec![8])));
    assert_eq!((block_on(array.to_vec_async()), array.try_load_from(0, &mut one), one), (Ok(vec![8]), Ok(()), [8]));
    assert_eq!((array.try_store_to(0, &[9]), array.load_from_timeout(0, &mut one, SHORT), one), (Ok(()), Ok(()), [9]));
    assert_eq!(array.store_to_timeout(0, &[10], SHORT), Ok(()));
    assert_eq!((block_on(array.load_from_async(0, &mut one)), one), (Ok(()), [10]));
    assert_eq!((block_on(array.store_to_async(0, &[11])), array.get(0)), (Ok(()), Ok(11)));
    block_on(array.lock_async()).unwrap()[0] = 5;
    assert_eq!(array.try_lock().unwrap()[0], 5);
    assert_eq!(array.lock_timeout(SHORT).unwrap()[0], 5);
}

fn spoiler(parent: &Peer) {
    let array: Array<u64> = parent.recv();
    let mut guard = array.lock().unwrap();
    guard[0] = 77;
    parent.send("half-way");
    parent.recv::<String>();
    drop(guard);
}

fn looker(parent: &Peer) {
    let array: Array<u64> = parent.recv();
    let guard = array.lock().unwrap();
    assert_eq!(guard[1], 2);
    parent.send("looking");
    parent.recv::<String>();
    drop(guard);
}

#[test]
fn a_death_with_a_slice_in_hand_is_told_until_it_is_repaired() {
    let array = Array::from_slice(&[1_u64, 2]).unwrap();
    let mut spoiler = child("spoiler", &array);
    spoiler.expect("half-way");
    let pid = spoiler.id();
    spoiler.kill();
    // Everybody learns it, not only the first one.
    for _ in 0..2 {
        let Err(LockError::Poisoned { pid: dead, guard }) = array.lock() else { panic!("not told") };
        assert_eq!(dead, Some(pid));
        assert_eq!(*guard, [77, 2]);
    }
    assert!(matches!(array.get(0), Err(ArrayError::Poisoned { pid: dead, .. }) if dead == pid));
    assert!(matches!(array.set(0, 1), Err(ArrayError::Poisoned { .. })));
    assert!(matches!(array.with(|_| ()), Err(ArrayError::Poisoned { .. })));
    assert!(array.to_vec().is_err() && array.is_poisoned());
    let mut guard = array.lock().unwrap_err().into_guard().unwrap();
    guard[0] = 1;
    guard.repair();
    drop(guard);
    assert_eq!(array.to_vec(), Ok(vec![1, 2]));
}

#[test]
fn whether_an_array_is_poisoned_is_told_without_waiting() {
    let array = Array::from_slice(&[1_u64, 2]).unwrap();
    let mut writes = child("spoiler", &array);
    writes.expect("half-way");
    assert!(!array.is_poisoned(), "it's alive");
    writes.kill();
    assert!(array.is_poisoned());
    let guard = array.lock().unwrap_err().into_guard().unwrap();
    assert!(array.is_poisoned(), "and not repaired, though somebody has the lock");
    drop(guard);
    let mut guard = array.lock().unwrap_err().into_guard().unwrap();
    guard.repair();
    assert!(!array.is_poisoned());
}

#[test]
fn a_death_that_only_looked_spoils_nothing() {
    let array = Array::from_slice(&[1_u64, 2]).unwrap();
    let mut looker = child("looker", &array);
    looker.expect("looking");
    looker.kill();
    assert_eq!(*array.lock().unwrap(), [1, 2]);
}

fn big_looker(parent: &Peer) {
    let array: Array<[u64; 3]> = parent.recv();
    let guard = array.lock().unwrap();
    parent.send("looking");
    parent.recv::<String>();
    drop(guard);
}

#[test]
fn an_element_that_a_dead_process_has_begun_to_write_is_finished() {
    let array = Array::from_slice(&[[1_u64; 3]; 3]).unwrap();
    let mut looker = child("big_looker", &array);
    looker.expect("looking");
    // What a process that holds the lock has done when it is killed between the second word and the third: the new
    // value is beside the elements, and said to be for element 1. (Heads of 64 bytes each for the object and the array,
    // the new value, then the elements at a multiple of 64.)
    let memory = memory_of(&array);
    memory.write_all_at([9_u64; 3].as_bytes(), 128).unwrap();
    memory.write_all_at(&2_u64.to_ne_bytes(), 64 + 16).unwrap();
    memory.write_all_at([9_u64; 2].as_bytes(), 192 + 24).unwrap();
    looker.kill();
    assert_eq!(array.to_vec(), Ok(vec![[1; 3], [9; 3], [1; 3]]));
    array.set(1, [2; 3]).unwrap();
    assert_eq!(array.get(1), Ok([2; 3]));
}

#[test]
fn a_panic_with_a_slice_in_hand_poisons_and_one_with_an_element_does_not() {
    let array = Array::from_slice(&[[1_u64; 3]; 2]).unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| {
        array.with_element(0, |v| {
            v[0] = 5;
            panic!("in the middle");
        })
    }));
    assert!(result.is_err());
    assert_eq!(array.get(0), Ok([1; 3]));
    assert!(catch_unwind(AssertUnwindSafe(|| array.with(|_| panic!("in the middle")))).is_err());
    assert!(matches!(array.get(0), Err(ArrayError::Poisoned { pid, .. }) if pid == std::process::id()));
    let Err(LockError::Poisoned { mut guard, .. }) = array.lock() else { panic!("not poisoned") };
    guard.repair();
    drop(guard);
    assert!(!array.is_poisoned());
}

fn swapper(parent: &Peer) {
    let array: Array<u64> = parent.recv();
    loop {
        array.with(|all| all.reverse()).unwrap();
    }
}

#[test]
fn slices_are_exclusive_between_processes() {
    // Large enough for a reversal to be seen half-done if it could be.
    let ascending: Vec<u64> = (0..20_000).collect();
    let array = Array::from_slice(&ascending).unwrap();
    let _children = [0, 1].map(|_| child("swapper", &array));
    let mut seen = [false; 2];
    let until = Instant::now() + LIMIT;
    while seen != [true; 2] {
        let all = array.to_vec().unwrap();
        seen[usize::from(all[0] != 0)] = true;
        assert!(all == ascending || all.iter().rev().eq(&ascending), "seen half-done");
        assert!(Instant::now() < until, "nobody swaps");
    }
}

#[test]
fn a_lie_about_the_lock_gives_no_second_slice() {
    let array = Array::from_slice(&[1_u64]).unwrap();
    let mut guard = array.lock().unwrap();
    // The lock's word is the first one behind the object's head.
    memory_of(&array).write_all_at(&[0; 4], 64).unwrap();
    assert!(matches!(array.try_lock(), Err(LockError::WouldBlock)));
    assert!(matches!(array.lock_timeout(SHORT), Err(LockError::TimedOut)));
    assert!(is_pending(array.lock_async()));
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let got = array.lock().unwrap_or_else(|error| error.into_guard().unwrap());
            sender.send(got[0]).unwrap();
        });
        assert!(receiver.recv_timeout(SHORT).is_err());
        guard[0] = 2;
        drop(guard);
        assert_eq!(receiver.recv_timeout(LIMIT), Ok(2));
    });
}

#[test]
fn a_lie_about_the_lock_lets_no_element_be_written_under_a_slice() {
    let array = Array::from_slice(&[1_u64]).unwrap();
    let guard = array.lock().unwrap();
    memory_of(&array).write_all_at(&[0; 4], 64).unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            array.set(0, 77).unwrap();
            sender.send(()).unwrap();
        });
        assert!(receiver.recv_timeout(SHORT).is_err());
        assert_eq!(guard[0], 1);
        drop(guard);
        assert_eq!(receiver.recv_timeout(LIMIT), Ok(()));
    });
    assert_eq!(array.get(0), Ok(77));
}

#[test]
fn the_memory_of_an_array_can_be_had_as_nothing_else() {
    let array = Array::from_slice(&[1_u64; 8]).unwrap();
    let (_, luggage) = pack(|| serde_json::to_vec(&array).unwrap());
    let as_memory = unpack(&luggage, || serde_json::from_str::<SharedMemory>("[0, null]"));
    assert!(as_memory.unwrap_err().to_string().contains("used as \"arry\""));
    let as_atomics = unpack(&luggage, || serde_json::from_str::<AtomicArray<u64>>("0"));
    assert!(as_atomics.unwrap_err().to_string().contains("used as \"arry\""));
    let memory = SharedMemory::new(4096).unwrap();
    let (bytes, _) = pack(|| serde_json::to_vec(&array).unwrap());
    let (_, luggage) = pack(|| serde_json::to_vec(&(&memory, &array)).unwrap());
    let as_array = unpack(&luggage, || serde_json::from_slice::<Array<u64>>(&bytes));
    assert!(as_array.unwrap_err().to_string().contains("used as \"bytes\""));
}

#[test]
fn handles_that_arrive_at_once_are_of_one_mapping() {
    for _ in 0..200 {
        let (bytes, luggage) = {
            let value = Value::new(1_u64).unwrap();
            pack(|| serde_json::to_vec(&value).unwrap())
        };
        let start = std::sync::Barrier::new(2);
        let take = || {
            start.wait();
            unpack(&luggage, || serde_json::from_slice::<Value<u64>>(&bytes)).unwrap()
        };
        let (one, two) = thread::scope(|scope| {
            let other = scope.spawn(take);
            (take(), other.join().unwrap())
        });
        assert!(one.is_same(&two));
    }
}

#[test]
fn lies_about_the_length_are_refused() {
    let array = Array::<u64>::new(100).unwrap();
    let handle = pack(|| serde_json::to_vec(&array).unwrap());
    for len in [101_u64, 1 << 40, u64::MAX] {
        memory_of(&array).write_all_at(&len.to_le_bytes(), 64 + 8).unwrap();
        let error = unpack(&handle.1, || serde_json::from_slice::<Array<u64>>(&handle.0)).unwrap_err();
        assert!(error.to_string().contains("room for"), "{error}");
        assert_eq!(array.to_vec().unwrap().len(), 100, "those who have it keep to what they know");
    }
    // A redo of an element that doesn't exist, and a version of any value.
    let big = Array::<[u64; 3]>::new(2).unwrap();
    memory_of(&big).write_all_at(&[0xff; 4], 64).unwrap(); // Held by a seat that nobody has.
    memory_of(&big).write_all_at(&[0xff; 8], 64 + 16).unwrap();
    assert_eq!(big.get(1), Ok([0; 3]));
    let value = Value::new(1_u64).unwrap();
    memory_of(&value).write_all_at(&[0xff; 8], 64 + 8).unwrap();
    let _ = value.get();
    value.set(3);
    assert_eq!(value.get(), 3);
}

#[test]
fn a_handle_of_something_else_is_refused() {
    let value = Value::new([0_u64; 100]).unwrap();
    let handle = pack(|| serde_json::to_vec(&value).unwrap());
    let opened = |wrong: Result<(), serde_json::Error>| wrong.unwrap_err().to_string();
    let as_other = unpack(&handle.1, || serde_json::from_slice::<Value<u32>>(&handle.0));
    assert!(opened(as_other.map(drop)).contains("shape"));
    let as_array = unpack(&handle.1, || serde_json::from_slice::<Array<u64>>(&handle.0));
    assert!(opened(as_array.map(drop)).contains("arry"));
    let atomic = AtomicValue::new(0_u64).unwrap();
    let handle = pack(|| serde_json::to_vec(&atomic).unwrap());
    let as_other = unpack(&handle.1, || serde_json::from_slice::<AtomicValue<u32>>(&handle.0));
    assert!(opened(as_other.map(drop)).contains("4 bytes"));
    let none = AtomicArray::<u64>::new(0).unwrap();
    let handle = pack(|| serde_json::to_vec(&none).unwrap());
    let as_value = unpack(&handle.1, || serde_json::from_slice::<AtomicValue<u64>>(&handle.0));
    assert!(opened(as_value.map(drop)).contains("none"));
    assert!(serde_json::to_vec(&value).is_err(), "a handle isn't bytes");
}

#[test]
fn handles_that_come_back_are_the_same() {
    let value = Value::new(1_u64).unwrap();
    let array = Array::<u64>::new(1).unwrap();
    let atomic = AtomicValue::new(1_i8).unwrap();
    let atomics = AtomicArray::from_slice(&[true, false]).unwrap();
    assert!(travelled(&value).is_same(&value) && value.clone().is_same(&value));
    assert!(travelled(&array).is_same(&array) && array.clone().is_same(&array));
    assert!(travelled(&atomic).is_same(&atomic) && travelled(&atomics).is_same(&atomics));
    assert!(!Value::new(1_u64).unwrap().is_same(&value));
}

// ---- Atomics

#[test]
fn atomics_of_every_type_do_what_they_say() {
    macro_rules! integers {
        ($($int:ident)+) => {$(
            let atomic = AtomicValue::<$int>::new(5).unwrap();
            assert_eq!(atomic.fetch_add(3, Relaxed), 5);
            assert_eq!(atomic.fetch_sub(1, Relaxed), 8);
            assert_eq!(atomic.fetch_max(9, Relaxed), 7);
            assert_eq!(atomic.fetch_min(6, Relaxed), 9);
            assert_eq!(atomic.fetch_and(3, Relaxed), 6);
            assert_eq!(atomic.fetch_or(8, Relaxed), 2);
            assert_eq!(atomic.fetch_xor(2, Relaxed), 10);
            assert_eq!(atomic.swap($int::MAX, Relaxed), 8);
            assert_eq!(atomic.fetch_add(1, Relaxed), $int::MAX);
            assert_eq!(atomic.compare_exchange($int::MIN, 4, SeqCst, Relaxed), Ok($int::MIN));
            assert_eq!(atomic.compare_exchange(5, 6, SeqCst, Relaxed), Err(4));
            assert_eq!(atomic.fetch_update(SeqCst, Relaxed, |v| v.checked_sub(1)), Ok(4));
            assert_eq!(atomic.fetch_update(SeqCst, Relaxed, |_| None), Err(3));
            assert_eq!(travelled(&atomic).load(SeqCst), 3);
        )+};
    }
    integers!(u8 i8 u16 i16 u32 i32 u64 i64 usize isize);
    assert_eq!(AtomicValue::new(-1_i32).unwrap().fetch_min(1, Relaxed), -1, "signed, not by bits");

    let float = AtomicValue::new(1.5_f64).unwrap();
    assert_eq!(float.fetch_add(1.0, Relaxed), 1.5);
    assert_eq!(float.fetch_sub(3.0, SeqCst), 2.5);
    assert_eq!(float.fetch_max(2.0, Relaxed), -0.5);
    assert_eq!(float.fetch_min(f64::NAN, Relaxed), 2.0);
    assert_eq!(float.compare_exchange(2.0, f64::NAN, SeqCst, Relaxed), Ok(2.0));
    assert!(float.compare_exchange(f64::NAN, 0.0, SeqCst, Relaxed).is_ok(), "by its bits");
    let float = AtomicValue::new(1.5_f32).unwrap();
    assert_eq!(float.fetch_add(1.0, Relaxed), 1.5);
    assert_eq!(float.load(Relaxed), 2.5);

    let flag = AtomicValue::new(false).unwrap();
    assert!(!flag.fetch_or(true, SeqCst) && flag.load(SeqCst));
    assert!(flag.fetch_xor(true, SeqCst) && !flag.swap(true, SeqCst));
    assert_eq!(flag.compare_exchange(false, true, SeqCst, SeqCst), Err(true));
    // Another process may write any byte.
    memory_of(&flag).write_all_at(&[2], 64).unwrap();
    assert!(flag.load(SeqCst));
    assert_eq!(format!("{flag:?}"), "AtomicValue(true)");
}

#[test]
fn an_atomic_array_is_a_slice() {
    let array = AtomicArray::from_slice(&[1_i64, -2, 3]).unwrap();
    array[1].fetch_add(1, Relaxed);
    assert_eq!(array.to_vec(), [1, -1, 3]);
    assert_eq!((array.len(), array.get(3).is_none()), (3, true));
    assert_eq!(array.iter().map(|v| v.load(Relaxed)).sum::<i64>(), 3);
    assert_eq!(format!("{array:?}"), "[1, -1, 3]");
    assert!(AtomicArray::<u64>::new(usize::MAX).is_err());
    assert!(AtomicArray::<u8>::new(0).unwrap().is_empty());
}

// ---- Nothing left

fn counts_fds(parent: &Peer) {
    let () = parent.recv();
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // The first object brings the board, which stays.
    let _first = Value::new(0_u8).unwrap();
    let before = count();
    for n in 0..200 {
        let value = Value::new(n).unwrap();
        let array = Array::<u64>::new(10).unwrap();
        let atomics = AtomicArray::<u64>::new(10).unwrap();
        let more = (travelled(&value), travelled(&array), travelled(&atomics), value.clone());
        assert_eq!(more.0.get(), n);
        array.with(|_| ()).unwrap();
    }
    assert_eq!(count(), before);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(maps.lines().filter(|line| line.contains("memfd:polypool")).count() < 5, "{maps}");
}

#[test]
fn no_descriptor_and_no_mapping_is_left() {
    child("counts_fds", &()).join();
}
