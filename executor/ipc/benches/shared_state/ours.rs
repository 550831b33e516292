//! Our side of the rows: the operations of this crate, as their documentation writes them. (The manager's stand in
//! `manager.rs`.)

use std::hint::black_box;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use polypool_ipc::{
    Array, AtomicValue, Barrier, Condvar, Connection, Event, Lock, LockError, Mutex, PipeSender, Queue, SharedList,
    SharedMemory, Value, channel, pipe,
};

use crate::helper::{Help, Helper, all, alone, half, together};
use crate::limits::ASLEEP;
use crate::part::{Contestant, Rounds, pin};
use crate::rows::{HOT, LARGE, SLICE};

pub(crate) const CONTESTANTS: &[Contestant] = &[
    ("ours/value-one", value_one),
    ("ours/value-two", value_two),
    ("ours/atomic-one", atomic_one),
    ("ours/atomic-two", atomic_two),
    ("ours/lock", lock),
    ("ours/array-element", array_element),
    ("ours/array-slice", array_slice),
    ("ours/queue", queue),
    ("ours/pipe-one-core", || round_trips(0)),
    ("ours/pipe-two-cores", || round_trips(1)),
    ("ours/pipe-large", large),
    ("ours/event", event),
    ("ours/condition", condition),
    ("ours/barrier", barrier),
    ("ours/memory-copy", copy),
    ("ours/memory-attach", attach),
    ("ours/list-get", list_get),
    ("ours/list-set", list_set),
    ("ours/kill", kill),
];

pub(crate) const HELPS: &[Help] = &[
    ("help/ours/value", |place| place.serve(|value: Value<i64>| Ok(move |count| increment_value(&value, count)))),
    ("help/ours/atomic", |place| {
        place.serve(|value: AtomicValue<i64>| Ok(move |count| increment_atomic(&value, count)))
    }),
    ("help/ours/queue", |place| {
        place.serve(|queue: Queue<u64>| {
            Ok(move |count| (0..count).try_for_each(|n| queue.put(n).map_err(io::Error::other)))
        })
    }),
    ("help/ours/pipe", |place| {
        place.serve(|end: Connection<u64>| {
            Ok(move |count| {
                for _ in 0..count {
                    let number = end.recv().map_err(io::Error::other)?;
                    end.send(&number).map_err(io::Error::other)?;
                }
                Ok(())
            })
        })
    }),
    ("help/ours/large", |place| {
        place.serve(|sender: PipeSender<()>| {
            let data = vec![1; LARGE];
            Ok(move |count| (0..count).try_for_each(|_| sender.send_bytes(&data).map_err(io::Error::other)))
        })
    }),
    ("help/ours/event", |place| {
        place.serve(|(asked, answered): (Event, Event)| {
            Ok(move |count| {
                for _ in 0..count {
                    asked.wait();
                    asked.clear();
                    answered.set();
                }
                Ok(())
            })
        })
    }),
    ("help/ours/condition", |place| {
        place.serve(|(turn, changed): (Mutex<u32>, Condvar)| Ok(move |count| take_turns(&turn, &changed, 1, count)))
    }),
    ("help/ours/barrier", |place| place.serve(|barrier: Barrier| Ok(move |count| cross(&barrier, count)))),
    ("help/ours/hold", |place| {
        place.serve(|lock: Lock| {
            std::mem::forget(lock.lock().map_err(|error| io::Error::other(error.to_string()))?);
            // The handle keeps what the guard is of.
            Ok(move |_| {
                black_box(&lock);
                Ok(())
            })
        })
    }),
];

fn increment_value(value: &Value<i64>, count: u64) -> io::Result<()> {
    for _ in 0..count {
        value.with(|n| *n += 1);
    }
    Ok(())
}

fn value_one() -> io::Result<Rounds> {
    let value = Value::new(0)?;
    Ok(alone(move |count| drop(increment_value(&value, count))))
}

fn value_two() -> io::Result<Rounds> {
    pin(0)?;
    let value = Value::new(0)?;
    let helper = Helper::start("help/ours/value", 1, &value)?;
    Ok(together(helper, half, move |count| increment_value(&value, count)))
}

fn increment_atomic(value: &AtomicValue<i64>, count: u64) -> io::Result<()> {
    for _ in 0..count {
        value.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn atomic_one() -> io::Result<Rounds> {
    let value = AtomicValue::new(0)?;
    Ok(alone(move |count| drop(increment_atomic(&value, count))))
}

fn atomic_two() -> io::Result<Rounds> {
    pin(0)?;
    let value = AtomicValue::new(0)?;
    let helper = Helper::start("help/ours/atomic", 1, &value)?;
    Ok(together(helper, half, move |count| increment_atomic(&value, count)))
}

fn lock() -> io::Result<Rounds> {
    let lock = Lock::new(())?;
    Ok(alone(move |count| {
        for _ in 0..count {
            drop(black_box(lock.lock()));
        }
    }))
}

fn array_element() -> io::Result<Rounds> {
    let array = Array::<i32>::new(SLICE)?;
    Ok(Box::new(move |count| {
        let start = Instant::now();
        for at in 0..count {
            array.with_element(at as usize % SLICE, |element| *element += 1).map_err(io::Error::other)?;
        }
        Ok(start.elapsed())
    }))
}

fn array_slice() -> io::Result<Rounds> {
    let array = Array::<i32>::new(SLICE)?;
    Ok(Box::new(move |count| {
        let start = Instant::now();
        for _ in 0..count {
            array
                .with(|all| all.iter_mut().for_each(|element| *element = element.wrapping_add(1)))
                .map_err(io::Error::other)?;
        }
        Ok(start.elapsed())
    }))
}

fn queue() -> io::Result<Rounds> {
    pin(0)?;
    let queue = Queue::<u64>::unbounded()?;
    let helper = Helper::start("help/ours/queue", 1, &queue)?;
    Ok(together(helper, all, move |count| {
        for _ in 0..count {
            black_box(queue.get().map_err(io::Error::other)?);
        }
        Ok(())
    }))
}

fn round_trips(core: usize) -> io::Result<Rounds> {
    pin(0)?;
    let (ours, theirs) = pipe::<u64>()?;
    let helper = Helper::start("help/ours/pipe", core, &theirs)?;
    drop(theirs);
    Ok(together(helper, all, move |count| {
        for number in 0..count {
            ours.send(&number).map_err(io::Error::other)?;
            ours.recv().map_err(io::Error::other)?;
        }
        Ok(())
    }))
}

fn large() -> io::Result<Rounds> {
    pin(0)?;
    let (sender, receiver) = channel::<()>()?;
    let helper = Helper::start("help/ours/large", 1, &sender)?;
    drop(sender);
    let mut message = Vec::new();
    Ok(together(helper, all, move |count| {
        for _ in 0..count {
            receiver.recv_bytes_into(&mut message, LARGE).map_err(io::Error::other)?;
        }
        Ok(())
    }))
}

fn event() -> io::Result<Rounds> {
    pin(0)?;
    let (asked, answered) = (Event::new()?, Event::new()?);
    let helper = Helper::start("help/ours/event", 1, &(&asked, &answered))?;
    Ok(together(helper, all, move |count| {
        for _ in 0..count {
            asked.set();
            answered.wait();
            answered.clear();
        }
        Ok(())
    }))
}

fn take_turns(turn: &Mutex<u32>, changed: &Condvar, me: u32, count: u64) -> io::Result<()> {
    let poisoned = |error: LockError<_>| io::Error::other(error.to_string());
    for _ in 0..count {
        let guard = turn.lock().map_err(poisoned)?;
        let mut guard = changed.wait_while(guard, |turn| *turn != me).map_err(poisoned)?;
        *guard = 1 - me;
        drop(guard);
        changed.notify_one();
    }
    Ok(())
}

fn condition() -> io::Result<Rounds> {
    pin(0)?;
    let (turn, changed) = (Mutex::new(0)?, Condvar::new()?);
    let helper = Helper::start("help/ours/condition", 1, &(&turn, &changed))?;
    Ok(together(helper, all, move |count| take_turns(&turn, &changed, 0, count)))
}

fn cross(barrier: &Barrier, count: u64) -> io::Result<()> {
    (0..count).try_for_each(|_| barrier.wait().map(drop).map_err(io::Error::other))
}

fn barrier() -> io::Result<Rounds> {
    pin(0)?;
    let barrier = Barrier::new(2)?;
    let helper = Helper::start("help/ours/barrier", 1, &barrier)?;
    Ok(together(helper, all, move |count| cross(&barrier, count)))
}

fn copy() -> io::Result<Rounds> {
    let memory = SharedMemory::new(HOT)?;
    let data = vec![1; HOT];
    memory.write_at(0, &data)?;
    Ok(Box::new(move |count| {
        let start = Instant::now();
        (0..count).try_for_each(|_| memory.write_at(0, &data))?;
        Ok(start.elapsed())
    }))
}

fn attach() -> io::Result<Rounds> {
    struct Unlink(String);
    impl Drop for Unlink {
        fn drop(&mut self) {
            let _ = SharedMemory::unlink_name(&self.0);
        }
    }
    let name = Unlink(format!("polypool-bench-ours-{}", std::process::id()));
    // Without a handle that stays, so that attaching can't profit from a mapping that is there.
    drop(SharedMemory::create_new(&name.0, 4096)?);
    Ok(Box::new(move |count| {
        let start = Instant::now();
        for _ in 0..count {
            let memory = SharedMemory::open(&name.0)?;
            black_box(memory.read::<u8>(0)?);
        }
        Ok(start.elapsed())
    }))
}

fn list() -> io::Result<SharedList> {
    SharedList::new((0..8_i64).map(Into::into))
}

fn list_get() -> io::Result<Rounds> {
    let list = list()?;
    Ok(Box::new(move |count| {
        let start = Instant::now();
        for at in 0..count {
            drop(black_box(list.get(at as usize & 7).map_err(io::Error::other)?));
        }
        Ok(start.elapsed())
    }))
}

fn list_set() -> io::Result<Rounds> {
    let list = list()?;
    Ok(Box::new(move |count| {
        let start = Instant::now();
        for at in 0..count {
            list.set(at as usize & 7, at as i64).map_err(io::Error::other)?;
        }
        Ok(start.elapsed())
    }))
}

fn kill() -> io::Result<Rounds> {
    pin(0)?;
    let lock = Lock::new(())?;
    Ok(Box::new(move |count| {
        let mut sum = Duration::ZERO;
        for _ in 0..count {
            let mut holder = Helper::start("help/ours/hold", 1, &lock)?;
            let waiter = std::thread::spawn({
                let lock = lock.clone();
                move || match lock.lock() {
                    Err(LockError::Poisoned { mut guard, .. }) => {
                        let at = Instant::now();
                        guard.repair();
                        Ok(at)
                    }
                    _ => Err(io::Error::other("the holder was not killed while it held the lock")),
                }
            });
            std::thread::sleep(ASLEEP);
            let killed = Instant::now();
            holder.kill()?;
            let at = waiter.join().map_err(|_| io::Error::other("the waiter has panicked"))??;
            sum += at.duration_since(killed);
        }
        Ok(sum)
    }))
}
