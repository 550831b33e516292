//! State shared between processes, as arguments, fields of arguments and results of tasks: whatever runs the task, a
//! handle arrives, not a copy.

use std::sync::atomic::Ordering::SeqCst;

use integration_tests::{ContractRow, Fixture, Spec, rows, seconds};
use polypool::ExecutorExt;
use polypool::shared::{
    Array, AtomicArray, AtomicValue, Barrier, BoundedSemaphore, ByteQueue, Condvar, Connection, Event, JoinableQueue,
    ListItem, LockError, Mutex, Once, OnceValue, PipeError, PipeReceiver, PipeSender, Queue, ReentrantMutex, RwLock,
    Semaphore, SharedList, SharedMemory, SharedMemoryScope, Value, channel, pipe,
};
use serde::{Deserialize, Serialize};

pub(crate) const ROWS: &[ContractRow] = rows![
    increments_of_shared_counters_are_not_lost,
    every_handle_is_an_argument_and_means_the_same_object,
    every_handle_is_a_result_and_outlives_its_maker,
    handles_travel_in_the_chunks_of_a_map,
    tasks_talk_through_a_pipe_until_its_end,
    s4_tasks_work_off_a_joinable_queue,
    s5_tasks_meet_at_a_barrier_and_wait_for_an_event,
    s6_memory_that_a_task_has_named_is_there_until_it_is_unlinked,
    lock_of_a_task_that_dies_with_it_tells_the_next_one,
    permits_of_a_task_that_dies_with_them_come_back,
    value_is_as_before_when_a_task_dies_in_the_middle_of_its_change,
];

const TASKS: u64 = 4;
const TIMES: u64 = 1_000;

#[derive(Clone, Serialize, Deserialize)]
struct Counters {
    mutex: Mutex<u64>,
    value: Value<u64>,
    array: Array<u64>,
    atomic: AtomicValue<u64>,
    reentrant: ReentrantMutex<u64>,
    rwlock: RwLock<u64>,
}

#[polypool::task]
fn increment(counters: Counters, times: u64) {
    for _ in 0..times {
        *counters.mutex.lock().unwrap() += 1;
        counters.value.with(|value| *value += 1);
        counters.array.with_element(2, |element| *element += 1).unwrap();
        counters.atomic.fetch_add(1, SeqCst);
        *counters.rwlock.write().unwrap() += 1;
    }
}

fn increments_of_shared_counters_are_not_lost(executor: &'static dyn Fixture) {
    let pool = executor.build(Spec::workers(2));
    let counters = Counters {
        mutex: Mutex::new(0).unwrap(),
        value: Value::new(0).unwrap(),
        array: Array::new(4).unwrap(),
        atomic: AtomicValue::new(0).unwrap(),
        reentrant: ReentrantMutex::new(0).unwrap(),
        rwlock: RwLock::new(0).unwrap(),
    };
    let tasks: Vec<_> =
        (0..TASKS).map(|_| pool.submit(increment { counters: counters.clone(), times: TIMES })).collect();
    for task in tasks {
        task.wait().unwrap();
    }
    assert_eq!(*counters.mutex.lock().unwrap(), TASKS * TIMES);
    assert_eq!(counters.value.get(), TASKS * TIMES);
    assert_eq!(counters.array.to_vec().unwrap(), [0, 0, TASKS * TIMES, 0]);
    assert_eq!(counters.atomic.load(SeqCst), TASKS * TIMES);
    assert_eq!(*counters.rwlock.read().unwrap(), TASKS * TIMES);
    assert!(counters.reentrant.lock().is_ok());
}

/// One of each.
#[derive(Clone, Serialize, Deserialize)]
struct Everything {
    mutex: Mutex<u64>,
    rwlock: RwLock<u64>,
    reentrant: ReentrantMutex<u64>,
    semaphore: Semaphore,
    bounded: BoundedSemaphore,
    event: Event,
    condvar: Condvar,
    barrier: Barrier,
    once: Once,
    once_value: OnceValue<u64>,
    value: Value<u64>,
    array: Array<u32>,
    atomic: AtomicValue<u32>,
    atomics: AtomicArray<u32>,
    memory: SharedMemory,
    list: SharedList,
    queue: Queue<String>,
    joinable: JoinableQueue<String>,
    bytes: ByteQueue,
    connection: Connection<String>,
    sender: PipeSender<String>,
    receiver: PipeReceiver<String>,
}

impl Everything {
    /// With what is at the other ends of its pipes.
    fn new() -> (Self, Connection<String>, PipeReceiver<String>, PipeSender<String>) {
        let (connection, other) = pipe().unwrap();
        let (sender, from_it) = channel().unwrap();
        let (to_it, receiver) = channel().unwrap();
        let everything = Everything {
            mutex: Mutex::new(1).unwrap(),
            rwlock: RwLock::new(1).unwrap(),
            reentrant: ReentrantMutex::new(1).unwrap(),
            semaphore: Semaphore::new(2).unwrap(),
            bounded: BoundedSemaphore::new(2).unwrap(),
            event: Event::new().unwrap(),
            condvar: Condvar::new().unwrap(),
            barrier: Barrier::new(1).unwrap(),
            once: Once::new().unwrap(),
            once_value: OnceValue::new().unwrap(),
            value: Value::new(1).unwrap(),
            array: Array::from_slice(&[1, 2, 3]).unwrap(),
            atomic: AtomicValue::new(1).unwrap(),
            atomics: AtomicArray::from_slice(&[1, 2]).unwrap(),
            memory: SharedMemory::new(10).unwrap(),
            list: SharedList::new([ListItem::from("hello"), ListItem::from(0_i64)]).unwrap(),
            queue: Queue::unbounded().unwrap(),
            joinable: JoinableQueue::unbounded().unwrap(),
            bytes: ByteQueue::unbounded().unwrap(),
            connection,
            sender,
            receiver,
        };
        (everything, other, from_it, to_it)
    }

    /// Changes each of them, so that other handles can tell.
    fn use_it(&self) {
        *self.mutex.lock().unwrap() = 7;
        *self.rwlock.write().unwrap() = 7;
        self.semaphore.acquire().forget();
        self.bounded.acquire().forget();
        self.condvar.notify_all();
        assert!(self.barrier.wait().unwrap().is_leader());
        assert!(self.once.call_once(|_| {}));
        self.once_value.set(7).unwrap();
        self.value.set(7);
        self.array.set(1, 7).unwrap();
        self.atomic.store(7, SeqCst);
        self.atomics[1].store(7, SeqCst);
        self.memory.write_at(3, b"Python").unwrap();
        self.list.set(1, 7_i64).unwrap();
        self.queue.put("seven".into()).unwrap();
        self.joinable.put("seven".into()).unwrap();
        self.bytes.put(b"seven").unwrap();
        self.connection.send(&"seven".into()).unwrap();
        self.sender.send(&"seven".into()).unwrap();
        assert_eq!(self.receiver.recv().unwrap(), "six");
        self.event.set();
    }

    fn check(&self) {
        assert!(self.event.wait_timeout(seconds(10)));
        assert_eq!(*self.mutex.lock().unwrap(), 7);
        assert_eq!(*self.rwlock.read().unwrap(), 7);
        assert_eq!(self.semaphore.available(), 1);
        assert_eq!(self.bounded.available(), 1);
        assert!(self.once.is_completed());
        assert_eq!(self.once_value.get(), Some(7));
        assert_eq!(self.value.get(), 7);
        assert_eq!(self.array.to_vec().unwrap(), [1, 7, 3]);
        assert_eq!(self.atomic.load(SeqCst), 7);
        assert_eq!(self.atomics.to_vec(), [1, 7]);
        assert_eq!(self.memory.to_vec().unwrap(), b"\0\0\0Python\0");
        assert_eq!(self.list.get(1).unwrap(), ListItem::from(7_i64));
        assert_eq!(self.queue.try_get().unwrap(), "seven");
        assert_eq!(self.joinable.try_get().unwrap(), "seven");
        assert_eq!(self.bytes.try_get().unwrap(), b"seven");
    }
}

#[polypool::task]
fn use_everything(everything: Everything) {
    everything.use_it();
}

fn every_handle_is_an_argument_and_means_the_same_object(executor: &'static dyn Fixture) {
    let pool = executor.build(Spec::workers(1));
    let (everything, other, from_it, to_it) = Everything::new();
    to_it.send(&"six".into()).unwrap();
    pool.submit(use_everything { everything: everything.clone() }).wait().unwrap();
    everything.check();
    assert_eq!(other.recv().unwrap(), "seven");
    assert_eq!(from_it.recv().unwrap(), "seven");
}

#[polypool::task]
fn make_everything() -> (Everything, Connection<String>, PipeReceiver<String>) {
    let (everything, other, from_it, to_it) = Everything::new();
    to_it.send(&"six".into()).unwrap();
    everything.use_it();
    (everything, other, from_it)
}

fn every_handle_is_a_result_and_outlives_its_maker(executor: &'static dyn Fixture) {
    let pool = executor.build(Spec::workers(1));
    let (everything, other, from_it) = pool.submit(make_everything {}).wait().unwrap();
    pool.shutdown(polypool::Shutdown::Now).wait_timeout(seconds(10)).expect("the pool ends");
    everything.check();
    assert_eq!(other.recv().unwrap(), "seven");
    assert_eq!(from_it.recv().unwrap(), "seven");
}

#[polypool::task]
fn add_to(sum: Value<u64>, n: u64) -> Value<u64> {
    sum.with(|sum| *sum += n);
    sum
}

fn handles_travel_in_the_chunks_of_a_map(executor: &'static dyn Fixture) {
    let pool = executor.build(Spec::workers(2));
    let sum = Value::new(0).unwrap();
    let tasks = (0..100).map(|n| add_to { sum: sum.clone(), n });
    for result in pool.map(tasks).chunk_size(8).blocking() {
        assert!(result.unwrap().is_same(&sum));
    }
    assert_eq!(sum.get(), 99 * 100 / 2);
}

#[polypool::task]
fn write_to(sender: PipeSender<Option<u32>>) {
    for item in [Some(42), None, Some(43)] {
        sender.send(&item).unwrap();
    }
    sender.send_bytes(b"thank you").unwrap();
}

fn tasks_talk_through_a_pipe_until_its_end(executor: &'static dyn Fixture) {
    let pool = executor.build(Spec::workers(1));
    let (sender, receiver) = channel().unwrap();
    let task = pool.submit(write_to { sender });
    for expected in [Some(42), None, Some(43)] {
        assert_eq!(receiver.recv().unwrap(), expected);
    }
    assert_eq!(receiver.recv_bytes(100).unwrap(), b"thank you");
    task.wait().unwrap();
    assert!(matches!(receiver.recv_timeout(seconds(10)), Err(PipeError::Closed)), "the only sender has gone");
}

#[polypool::task]
fn work_off(queue: JoinableQueue<u64>, sum: Value<u64>) {
    while let Ok(item) = queue.get() {
        sum.with(|sum| *sum += item);
        queue.task_done().unwrap();
    }
}

fn s4_tasks_work_off_a_joinable_queue(executor: &'static dyn Fixture) {
    let pool = executor.build(Spec::workers(2));
    let (queue, sum) = (JoinableQueue::bounded(10).unwrap(), Value::new(0).unwrap());
    let workers: Vec<_> = (0..2).map(|_| pool.submit(work_off { queue: queue.clone(), sum: sum.clone() })).collect();
    for n in 0..1_000 {
        queue.put(n).unwrap();
    }
    queue.join();
    assert_eq!(sum.get(), 999 * 1_000 / 2);
    queue.close();
    for worker in workers {
        worker.wait().unwrap();
    }
}

#[polypool::task]
fn meet(event: Event, barrier: Barrier, passed: AtomicValue<u32>) -> bool {
    event.wait();
    let leads = barrier.wait_with(|| _ = passed.fetch_add(1, SeqCst)).unwrap().is_leader();
    assert_eq!(passed.load(SeqCst), 1, "the action comes before anybody passes");
    leads
}

fn s5_tasks_meet_at_a_barrier_and_wait_for_an_event(executor: &'static dyn Fixture) {
    let pool = executor.build(Spec::workers(3));
    let (event, barrier) = (Event::new().unwrap(), Barrier::new(3).unwrap());
    let passed = AtomicValue::new(0).unwrap();
    let tasks: Vec<_> = (0..3)
        .map(|_| pool.submit(meet { event: event.clone(), barrier: barrier.clone(), passed: passed.clone() }))
        .collect();
    event.set();
    let leaders = tasks.into_iter().map(|task| u32::from(task.wait().unwrap())).sum::<u32>();
    assert_eq!(leaders, 1);
}

#[polypool::task]
fn name_memory(name: String) {
    SharedMemory::create_new(&name, 6).unwrap().write_at(0, b"Python").unwrap();
}

fn s6_memory_that_a_task_has_named_is_there_until_it_is_unlinked(executor: &'static dyn Fixture) {
    let pool = executor.build(Spec::workers(1));
    let name = format!("polypool-test-{}", std::process::id());
    pool.submit(name_memory { name: name.clone() }).wait().unwrap();
    let memory = SharedMemory::open(&name).unwrap();
    assert_eq!(memory.to_vec().unwrap(), b"Python");
    memory.unlink().unwrap();
    assert!(SharedMemory::open(&name).is_err());
    let scope = SharedMemoryScope::new();
    assert_eq!(scope.memory(3).unwrap().len(), 3);
}

#[polypool::task]
fn die_with_lock(mutex: Mutex<u64>, semaphore: Semaphore, value: Value<u64>) {
    let mut guard = mutex.lock().unwrap();
    *guard = 13;
    let _permit = semaphore.acquire();
    value.with(|value| {
        *value = 13;
        std::process::abort()
    })
}

/// A task that dies with all it holds, where a task can do that.
fn die(executor: &'static dyn Fixture) -> Option<(Mutex<u64>, Semaphore, Value<u64>)> {
    if !executor.has_processes() {
        return None;
    }
    let pool = executor.build(Spec::workers(1));
    let (mutex, semaphore, value) = (Mutex::new(1).unwrap(), Semaphore::new(1).unwrap(), Value::new(1).unwrap());
    let task = die_with_lock { mutex: mutex.clone(), semaphore: semaphore.clone(), value: value.clone() };
    pool.submit(task).wait().unwrap_err();
    Some((mutex, semaphore, value))
}

fn lock_of_a_task_that_dies_with_it_tells_the_next_one(executor: &'static dyn Fixture) {
    let Some((mutex, ..)) = die(executor) else { return };
    match mutex.lock_timeout(seconds(10)) {
        Err(LockError::Poisoned { pid, mut guard }) => {
            assert!(pid.is_some_and(|pid| pid != std::process::id()), "{pid:?}");
            assert_eq!(*guard, 1, "what it had not finished has not happened");
            guard.repair();
        }
        other => panic!("{other:?}"),
    }
    assert!(mutex.lock().is_ok());
}

fn permits_of_a_task_that_dies_with_them_come_back(executor: &'static dyn Fixture) {
    let Some((_, semaphore, _)) = die(executor) else { return };
    drop(semaphore.acquire_timeout(seconds(10)).unwrap());
    assert_eq!(semaphore.available(), 1);
}

fn value_is_as_before_when_a_task_dies_in_the_middle_of_its_change(executor: &'static dyn Fixture) {
    let Some((.., value)) = die(executor) else { return };
    value.with_timeout(seconds(10), |value| *value += 1).expect("the lock of the dead is given to the next one");
    assert_eq!(value.get(), 2);
}
