//! The lock under all others: one word, which names its holder, so that the death of the holder is noticed.
//!
//! # The word
//!
//! | bits | meaning |
//! |---|---|
//! | 0–29 | the [`Seat`] of the process that holds it; 0: free |
//! | 31 | somebody may be asleep, so an unlock must wake |
//!
//! # The transitions
//!
//! | from | to | by | when |
//! |---|---|---|---|
//! | free | mine | `try_lock` | at once |
//! | theirs | theirs + asleep | a waiter, before it sleeps | the holder is alive |
//! | free (+ asleep) | mine + asleep | a waiter that has slept | so that its unlock wakes the next one |
//! | of a dead process | mine + asleep | anybody who looks | `Taken::FromDead`; others that wait for that process are told |
//! | mine | free | the holder | wakes one if somebody may be asleep |
//!
//! A waiter sleeps on the word and on the holder's presence, by the values it has seen; the kernel checks both as it
//! puts it to sleep. Two of the same process compete like two of different ones: the word names processes, and the
//! guard, which may move between threads, is the proof of ownership.
//!
//! The protocol is run through every interleaving by `tests/loom_lock.rs`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::memory::segment::Layout;
use crate::object::{BODY, Object};
use crate::presence::{Holder, SEAT_BITS, Seat};
use crate::wait::{self, Change, Step, Word, futex};

mod protocol;

use protocol::Attempt;

const _: () = assert!(protocol::HOLDER == SEAT_BITS);

/// The memory of a lock. All zero is free.
#[repr(C)]
pub(crate) struct LockWord(AtomicU32);

// SAFETY: repr(C), one atomic.
unsafe impl Layout for LockWord {}

/// How a lock was obtained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Taken {
    /// Its last holder gave it back.
    Fairly,
    /// Its last holder died with it. The number of that process, if it is known.
    FromDead(Option<u32>),
}

/// The lock at one place of an object.
#[derive(Clone, Copy)]
pub(crate) struct RawLock<'a> {
    object: &'a Object,
    word: &'a AtomicU32,
    offset: usize,
}

impl<'a> RawLock<'a> {
    /// The lock whose word stands at `offset` of the body of `object`.
    #[inline]
    pub(crate) fn new(object: &'a Object, offset: usize) -> Self {
        RawLock { object, word: &object.at::<LockWord>(offset).0, offset }
    }

    #[inline]
    fn me(self) -> u32 {
        self.object.board().seat().bits()
    }

    /// Takes it if it is free, or its holder is dead.
    #[inline]
    pub(crate) fn try_lock(self) -> Option<Taken> {
        match protocol::take(self.word, self.me()) {
            Ok(()) => Some(Taken::Fairly),
            Err(_) => self.attempt(false, false).ok(),
        }
    }

    #[cold]
    fn attempt(self, mark: bool, slept: bool) -> Result<Taken, u32> {
        let board = self.object.board();
        // A seat that can't exist is a peer's lie, and nobody holds the lock.
        let is_dead = |holder| {
            let Some(seat) = Seat::from_word(holder) else { return true };
            // Another thread of the dying process may still write under the lock, or give it back: not before it has
            // left.
            board.is_dead(seat) && board.has_left(seat)
        };
        match protocol::attempt(self.word, self.me(), mark, slept, is_dead) {
            Attempt::Mine => Ok(Taken::Fairly),
            Attempt::Inherited(holder) => {
                let Some(seat) = Seat::from_word(holder) else { return Ok(Taken::FromDead(None)) };
                // The kernel wakes one of those who wait for a presence.
                board.tell(seat);
                Ok(Taken::FromDead(board.pid_of_dead(seat)))
            }
            Attempt::Held(found) => Err(found),
        }
    }

    /// One attempt of a waiter; `slept` is its memory from one attempt to the next.
    pub(crate) fn step(self, slept: &mut bool) -> Step<Taken> {
        if !*slept && let Some(taken) = self.spin() {
            return Step::Ready(taken);
        }
        let board = self.object.board();
        let found = match self.attempt(true, *slept) {
            Ok(taken) => return Step::Ready(taken),
            Err(found) => found,
        };
        let Some(Holder::Alive(presence, alive)) = Seat::from_word(found).map(|seat| board.look(seat)) else {
            // Dead, but not gone for good: to be looked at again at once, so a value that the word doesn't have.
            return Step::Wait(Change::of(self.object.segment(), BODY + self.offset, found.wrapping_add(1)));
        };
        *slept = true;
        Step::Wait(Change {
            holders: vec![(Word::new(board.segment(), board.offset(presence)), alive)],
            ..Change::of(self.object.segment(), BODY + self.offset, found)
        })
    }

    /// Waits a moment without sleeping, as long as nobody else sleeps: those come first.
    fn spin(self) -> Option<Taken> {
        // Rarer and rarer: each look takes the line away from the holder, who might use the lock again at once.
        let mut pause = 1;
        while pause <= wait::spins() {
            match self.word.load(Ordering::Relaxed) {
                0 if protocol::take(self.word, self.me()).is_ok() => return Some(Taken::Fairly),
                word if word & protocol::ASLEEP != 0 => return None,
                _ => {}
            }
            (0..pause).for_each(|_| std::hint::spin_loop());
            pause *= 2;
        }
        None
    }

    /// Blocks until it is ours.
    #[inline]
    pub(crate) fn lock(self) -> Taken {
        match protocol::take(self.word, self.me()) {
            Ok(()) => Taken::Fairly,
            Err(_) => self.lock_until(None).unwrap_or_else(|| unreachable!("without a deadline there is no timeout")),
        }
    }

    /// Blocks until it is ours, or the time has come: then `None`.
    #[cold]
    pub(crate) fn lock_until(self, until: Option<Instant>) -> Option<Taken> {
        let mut slept = false;
        wait::block(until, || self.step(&mut slept))
    }

    /// Gives it back. Only for the one who holds it, or did so before a fork: then it's the parent's, and nothing
    /// happens.
    #[inline]
    pub(crate) fn unlock(self) {
        if self.is_mine() && protocol::give_back(self.word) {
            self.wake();
        }
    }

    /// For those who hold it: whether that's this process, or its parent, from which a guard was inherited by a fork.
    #[inline]
    pub(crate) fn is_mine(self) -> bool {
        self.object.board().is_mine(self.word.load(Ordering::Relaxed))
    }

    #[cold]
    fn wake(self) {
        futex::wake(self.word, 1);
    }

    /// The process that holds it now.
    pub(crate) fn holder(self) -> Option<Seat> {
        Seat::from_word(self.word.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;
    use crate::object::shape_of;
    use crate::{Luggage, pack, recv_with_fds, send_with_fds, unpack};

    const KIND: crate::object::Kind = *b"test";

    fn object() -> Object {
        Object::create(KIND, shape_of::<u64>(), 4096).unwrap()
    }

    /// Starts this test program again, running the ignored test `role` alone, with a socket as its input that brings
    /// the object.
    fn child(role: &str, object: &Object) -> (Child, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("sync::raw::tests::{role}"), "--ignored", "--nocapture", "--test-threads=1"])
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (bytes, luggage) = pack(|| {
            let mut bytes = Vec::new();
            object.serialize(&mut serde_json::Serializer::new(&mut bytes)).unwrap();
            bytes
        });
        send_with_fds(&ours, &bytes, &luggage.fds().collect::<Vec<_>>()).unwrap();
        ours.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        (child, ours)
    }

    fn received() -> (Object, UnixStream) {
        let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
        let mut bytes = [0; 1024];
        let (count, fds) = recv_with_fds(&socket, &mut bytes, 8).unwrap();
        let object = unpack(&Luggage::new(fds), || {
            Object::deserialize(&mut serde_json::Deserializer::from_slice(&bytes[..count]), KIND, shape_of::<u64>(), 8)
        });
        (object.unwrap(), socket)
    }

    fn wait_for_byte(mut socket: &UnixStream) {
        socket.read_exact(&mut [0]).unwrap();
    }

    #[test]
    #[ignore = "the part of a child"]
    fn holds_for_ever() {
        let (object, mut socket) = received();
        assert_eq!(RawLock::new(&object, 0).lock(), Taken::Fairly);
        socket.write_all(b"h").unwrap();
        wait_for_byte(&socket);
    }

    #[test]
    fn all_who_wait_get_the_lock_of_a_killed_process() {
        let object = object();
        let (mut child, socket) = child("holds_for_ever", &object);
        wait_for_byte(&socket);
        assert_eq!(RawLock::new(&object, 0).try_lock(), None);
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let object = object.clone();
                std::thread::spawn(move || {
                    let lock = RawLock::new(&object, 0);
                    let taken = lock.lock();
                    let at = Instant::now();
                    lock.unlock();
                    (taken, at)
                })
            })
            .collect();
        while object.at::<AtomicU32>(0).load(Ordering::SeqCst) & protocol::ASLEEP == 0 {
            std::thread::yield_now();
        }
        let pid = child.id();
        let killed = Instant::now();
        child.kill().unwrap();
        let taken: Vec<_> = waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect();
        for (_, at) in &taken {
            println!("after {:?}", at.duration_since(killed));
        }
        child.wait().unwrap();
        assert_eq!(taken.iter().filter(|(taken, _)| *taken == Taken::FromDead(Some(pid))).count(), 1);
        assert_eq!(taken.iter().filter(|(taken, _)| *taken == Taken::Fairly).count(), 2);
    }

    #[test]
    #[ignore = "the part of a child"]
    fn counts() {
        let (object, mut socket) = received();
        socket.write_all(b"r").unwrap();
        wait_for_byte(&socket);
        let lock = RawLock::new(&object, 0);
        let count = object.at::<std::sync::atomic::AtomicU64>(64);
        let start = Instant::now();
        for _ in 0..ROUNDS {
            lock.lock();
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            lock.unlock();
        }
        eprintln!("{:?} per round", start.elapsed() / ROUNDS);
        socket.write_all(b"d").unwrap();
    }

    const ROUNDS: u32 = 300_000;

    #[test]
    fn increments_of_several_processes_are_not_lost() {
        let object = object();
        let mut children: Vec<_> = (0..2).map(|_| child("counts", &object)).collect();
        children.iter().for_each(|(_, socket)| wait_for_byte(socket));
        children.iter_mut().for_each(|(_, socket)| socket.write_all(b"g").unwrap());
        children.iter().for_each(|(_, socket)| wait_for_byte(socket));
        children.iter_mut().for_each(|(child, _)| assert!(child.wait().unwrap().success()));
        assert_eq!(object.at::<std::sync::atomic::AtomicU64>(64).load(Ordering::Relaxed), 2 * u64::from(ROUNDS));
        let lock = RawLock::new(&object, 0);
        let start = Instant::now();
        for _ in 0..ROUNDS {
            lock.lock();
            lock.unlock();
        }
        println!("alone {:?} per round", start.elapsed() / ROUNDS);
    }
}
