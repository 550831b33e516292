//! The limits: each operation as a bare Rust program would do it that may forget everything that can go wrong.

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use polypool_ipc::Fd;
use rustix::fs::{Mode, ftruncate};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::shm;

use crate::bare::{LINE, Lock, Memory, Ring, RobustLock, raise, sleep_while, spin_until};
use crate::helper::{Help, Helper, all, alone, half, together};
use crate::part::{Contestant, Rounds, pin};
use crate::rows::{HOT, IN_FLIGHT, LARGE, SLICE};

pub(crate) const CONTESTANTS: &[Contestant] = &[
    ("limit/value-one", value_one),
    ("limit/value-two", value_two),
    ("limit/atomic-one", atomic_one),
    ("limit/atomic-two", atomic_two),
    ("limit/lock", lock),
    ("limit/array-element", array_element),
    ("limit/array-slice", array_slice),
    ("limit/manager-one-core", || socket_round_trips(0)),
    ("limit/manager-two-cores", spinning_round_trips),
    ("limit/manager-in-flight", in_flight),
    ("limit/manager-futures", in_flight),
    ("limit/queue", queue),
    ("limit/pipe-one-core", || socket_round_trips(0)),
    ("limit/pipe-two-cores", spinning_round_trips),
    ("limit/pipe-large", large),
    ("limit/event", futex_round_trips),
    ("limit/condition", futex_round_trips),
    ("limit/barrier", futex_round_trips),
    ("limit/memory-copy", copy),
    ("limit/memory-attach", attach),
    ("limit/list-get", list_get),
    ("limit/list-set", list_set),
    ("limit/kill", kill),
];

pub(crate) const HELPS: &[Help] = &[
    ("help/limit/increment-locked", |place| {
        place.serve(|memory: Memory| Ok(move |count| increment_locked(&memory, count)))
    }),
    ("help/limit/increment", |place| place.serve(|memory: Memory| Ok(move |count| increment(&memory, count)))),
    ("help/limit/socket-echo", |place| {
        place.serve(|fd: Fd| {
            let mut socket = UnixStream::from(fd.into_inner()?);
            Ok(move |count| socket_echo(&mut socket, count))
        })
    }),
    ("help/limit/spinning-echo", |place| place.serve(|memory: Memory| Ok(move |count| spinning_echo(&memory, count)))),
    ("help/limit/in-flight", |place| {
        place.serve(|fd: Fd| {
            let mut socket = UnixStream::from(fd.into_inner()?);
            Ok(move |count| serve_frames(&mut socket, count))
        })
    }),
    ("help/limit/queue", |place| {
        place.serve(|memory: Memory| {
            let memory: &'static Memory = Box::leak(Box::new(memory));
            let mut ring = Ring::new(memory);
            Ok(move |count| {
                (0..count).for_each(|value| ring.put(value));
                Ok(())
            })
        })
    }),
    ("help/limit/large", |place| place.serve(|memory: Memory| Ok(move |count| put_large(&memory, count)))),
    ("help/limit/futex-echo", |place| place.serve(|memory: Memory| Ok(move |count| futex_echo(&memory, count)))),
    ("help/limit/hold", |place| {
        place.serve(|memory: Memory| {
            let lock = RobustLock::open(Box::leak(Box::new(memory)));
            lock.lock()?;
            Ok(|_| Ok(()))
        })
    }),
];

fn increment_locked(memory: &Memory, count: u64) -> io::Result<()> {
    let (lock, value) = (Lock(memory.word(0)), memory.long(1));
    for _ in 0..count {
        lock.lock();
        value.store(value.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        lock.unlock();
    }
    Ok(())
}

fn increment(memory: &Memory, count: u64) -> io::Result<()> {
    let value = memory.long(0);
    for _ in 0..count {
        value.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn value_one() -> io::Result<Rounds> {
    let memory = Memory::new(2 * LINE)?;
    Ok(alone(move |count| drop(increment_locked(&memory, count))))
}

fn value_two() -> io::Result<Rounds> {
    pin(0)?;
    let memory = Memory::new(2 * LINE)?;
    let helper = Helper::start("help/limit/increment-locked", 1, &memory)?;
    Ok(together(helper, half, move |count| increment_locked(&memory, count)))
}

fn atomic_one() -> io::Result<Rounds> {
    let memory = Memory::new(LINE)?;
    Ok(alone(move |count| drop(increment(&memory, count))))
}

fn atomic_two() -> io::Result<Rounds> {
    pin(0)?;
    let memory = Memory::new(LINE)?;
    let helper = Helper::start("help/limit/increment", 1, &memory)?;
    Ok(together(helper, half, move |count| increment(&memory, count)))
}

fn lock() -> io::Result<Rounds> {
    let memory = Memory::new(LINE)?;
    Ok(alone(move |count| {
        let lock = Lock(memory.word(0));
        for _ in 0..count {
            lock.lock();
            lock.unlock();
        }
    }))
}

/// A store that nobody orders; a lock would only add to it.
fn array_element() -> io::Result<Rounds> {
    let memory = Memory::new(SLICE * 8)?;
    Ok(alone(move |count| {
        let elements = memory.longs(0, SLICE);
        for at in 0..count {
            let element = &elements[at as usize % SLICE];
            element.store(element.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }))
}

/// A plain slice of memory of our own.
fn array_slice() -> io::Result<Rounds> {
    let mut elements = vec![0_i32; SLICE];
    Ok(alone(move |count| {
        for _ in 0..count {
            for element in black_box(&mut elements[..]) {
                *element = element.wrapping_add(1);
            }
        }
    }))
}

/// Two writes and two reads of a socket, of what a request and its answer take.
fn socket_round_trips(core: usize) -> io::Result<Rounds> {
    pin(0)?;
    let (mut socket, theirs) = UnixStream::pair()?;
    let helper = Helper::start("help/limit/socket-echo", core, &Fd::new(OwnedFd::from(theirs)))?;
    Ok(together(helper, all, move |count| {
        let mut message = [1; 32];
        for _ in 0..count {
            socket.write_all(&message)?;
            socket.read_exact(&mut message)?;
        }
        Ok(())
    }))
}

fn socket_echo(socket: &mut UnixStream, count: u64) -> io::Result<()> {
    let mut message = [0; 32];
    for _ in 0..count {
        socket.read_exact(&mut message)?;
        socket.write_all(&message)?;
    }
    Ok(())
}

/// A word there and a word back, both sides awake.
fn spinning_round_trips() -> io::Result<Rounds> {
    pin(0)?;
    let memory = Memory::new(2 * LINE)?;
    let helper = Helper::start("help/limit/spinning-echo", 1, &memory)?;
    Ok(together(helper, all, move |count| {
        let (there, back) = (memory.long(0), memory.long(1));
        for _ in 0..count {
            let next = there.load(Ordering::Relaxed) + 1;
            there.store(next, Ordering::Release);
            spin_until(|| back.load(Ordering::Acquire) == next);
        }
        Ok(())
    }))
}

fn spinning_echo(memory: &Memory, count: u64) -> io::Result<()> {
    let (there, back) = (memory.long(0), memory.long(1));
    for _ in 0..count {
        let next = back.load(Ordering::Relaxed) + 1;
        spin_until(|| there.load(Ordering::Acquire) == next);
        back.store(next, Ordering::Release);
    }
    Ok(())
}

const FRAME: usize = 32;

/// As many frames in one write as are to be in flight, answered in as few writes as possible.
fn in_flight() -> io::Result<Rounds> {
    pin(0)?;
    let (mut socket, theirs) = UnixStream::pair()?;
    let helper = Helper::start("help/limit/in-flight", 1, &Fd::new(OwnedFd::from(theirs)))?;
    Ok(together(helper, all, move |count| {
        let mut frames = [7; IN_FLIGHT * FRAME];
        let mut left = count as usize;
        while left > 0 {
            let bytes = left.min(IN_FLIGHT) * FRAME;
            socket.write_all(&frames[..bytes])?;
            socket.read_exact(&mut frames[..bytes])?;
            left -= bytes / FRAME;
        }
        Ok(())
    }))
}

fn serve_frames(socket: &mut UnixStream, count: u64) -> io::Result<()> {
    let mut frames = [0; IN_FLIGHT * FRAME];
    let mut left = count as usize * FRAME;
    while left > 0 {
        let bytes = socket.read(&mut frames)?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        socket.write_all(&frames[..bytes])?;
        left -= bytes;
    }
    Ok(())
}

fn queue() -> io::Result<Rounds> {
    pin(0)?;
    let memory: &'static Memory = Box::leak(Box::new(Memory::new(Ring::LEN)?));
    let helper = Helper::start("help/limit/queue", 1, memory)?;
    let mut ring = Ring::new(memory);
    Ok(together(helper, all, move |count| {
        for _ in 0..count {
            black_box(ring.get());
        }
        Ok(())
    }))
}

/// How many large messages may be on their way.
const SLOTS: u64 = 4;

/// The place of large message `number`, behind the two lines of the positions.
fn slot(memory: &Memory, number: u64) -> *mut u8 {
    memory.bytes(2 * LINE + (number % SLOTS) as usize * LARGE, LARGE)
}

/// A copy into shared memory on one side and out of it on the other.
fn large() -> io::Result<Rounds> {
    pin(0)?;
    let memory = Memory::new(2 * LINE + SLOTS as usize * LARGE)?;
    let helper = Helper::start("help/limit/large", 1, &memory)?;
    let mut data = vec![0; LARGE];
    Ok(together(helper, all, move |count| {
        let (head, tail) = (memory.long(0), memory.long(1));
        for _ in 0..count {
            let number = head.load(Ordering::Relaxed);
            spin_until(|| tail.load(Ordering::Acquire) > number);
            // SAFETY: the writer has published the slot, and doesn't touch it again before the head has passed it.
            unsafe { std::ptr::copy_nonoverlapping(slot(&memory, number), data.as_mut_ptr(), LARGE) };
            black_box(&mut data);
            head.store(number + 1, Ordering::Release);
        }
        Ok(())
    }))
}

fn put_large(memory: &Memory, count: u64) -> io::Result<()> {
    let data = vec![1; LARGE];
    let (head, tail) = (memory.long(0), memory.long(1));
    for _ in 0..count {
        let number = tail.load(Ordering::Relaxed);
        spin_until(|| number - head.load(Ordering::Acquire) < SLOTS);
        // SAFETY: the reader doesn't touch a slot before the tail has passed it.
        unsafe { std::ptr::copy_nonoverlapping(black_box(&data).as_ptr(), slot(memory, number), LARGE) };
        tail.store(number + 1, Ordering::Release);
    }
    Ok(())
}

/// A futex wakes there and a futex wakes back, both sides asleep in between.
fn futex_round_trips() -> io::Result<Rounds> {
    pin(0)?;
    let memory = Memory::new(2 * LINE)?;
    let helper = Helper::start("help/limit/futex-echo", 1, &memory)?;
    Ok(together(helper, all, move |count| {
        let (there, back) = (memory.word(0), memory.word(1));
        for _ in 0..count {
            let before = back.load(Ordering::Relaxed);
            raise(there);
            sleep_while(back, before);
        }
        Ok(())
    }))
}

fn futex_echo(memory: &Memory, count: u64) -> io::Result<()> {
    let (there, back) = (memory.word(0), memory.word(1));
    for _ in 0..count {
        sleep_while(there, back.load(Ordering::Relaxed));
        raise(back);
    }
    Ok(())
}

fn copy() -> io::Result<Rounds> {
    let memory = Memory::new(HOT)?;
    let data = vec![1; HOT];
    Ok(alone(move |count| {
        for _ in 0..count {
            // SAFETY: both are that long, and nobody else knows the memory.
            unsafe { std::ptr::copy_nonoverlapping(black_box(&data).as_ptr(), memory.bytes(0, HOT), HOT) };
        }
    }))
}

/// Open, map, look, unmap, close.
fn attach() -> io::Result<Rounds> {
    const LEN: usize = 4096;
    struct Unlink(String);
    impl Drop for Unlink {
        fn drop(&mut self) {
            let _ = shm::unlink(self.0.as_str());
        }
    }
    let name = format!("/polypool-bench-{}", std::process::id());
    let fd =
        shm::open(name.as_str(), shm::OFlags::CREATE | shm::OFlags::EXCL | shm::OFlags::RDWR, Mode::RUSR | Mode::WUSR)?;
    let name = Unlink(name);
    ftruncate(&fd, LEN as u64)?;
    let once = move || -> io::Result<()> {
        let fd = shm::open(name.0.as_str(), shm::OFlags::RDWR, Mode::empty())?;
        let len = rustix::fs::fstat(&fd)?.st_size as usize;
        // SAFETY: without MAP_FIXED the kernel chooses a free range; it's read within its length, which nobody changes,
        // and unmapped once.
        unsafe {
            let start = mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)?;
            black_box(start.cast::<u8>().read_volatile());
            munmap(start, len)?;
        }
        Ok(())
    };
    Ok(Box::new(move |count| {
        let start = Instant::now();
        (0..count).try_for_each(|_| once())?;
        Ok(start.elapsed())
    }))
}

fn list_get() -> io::Result<Rounds> {
    let memory = Memory::new(LINE)?;
    Ok(alone(move |count| {
        let slots = memory.longs(0, 8);
        for at in 0..count {
            black_box(slots[at as usize & 7].load(Ordering::Relaxed));
        }
    }))
}

fn list_set() -> io::Result<Rounds> {
    let memory = Memory::new(LINE)?;
    Ok(alone(move |count| {
        let slots = memory.longs(0, 8);
        for at in 0..count {
            slots[at as usize & 7].store(black_box(at), Ordering::Relaxed);
        }
    }))
}

/// How long a waiter is given to fall asleep before its holder is killed.
pub(crate) const ASLEEP: Duration = Duration::from_millis(5);

/// The C library's robust lock.
fn kill() -> io::Result<Rounds> {
    pin(0)?;
    let memory: &'static Memory = Box::leak(Box::new(Memory::new(RobustLock::LEN)?));
    let lock = RobustLock::create(memory)?;
    Ok(Box::new(move |count| {
        let mut sum = Duration::ZERO;
        for _ in 0..count {
            let mut holder = Helper::start("help/limit/hold", 1, memory)?;
            let waiter = std::thread::spawn(move || {
                let inherited = lock.lock()?;
                let at = Instant::now();
                lock.unlock()?;
                if inherited {
                    Ok(at)
                } else {
                    Err(io::Error::other("the holder was not killed while it held the lock"))
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
