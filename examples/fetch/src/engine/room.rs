//! How much memory the rows that wait may take. Their number says little: one may have a body of some megabytes.
//!
//! Whoever reads takes a share for each row, and waits until there is room for it; a row that nothing waits beside is
//! always let in, however large it is. What is under way gives its share back, for then it counts among the requests at
//! once; a second attempt takes it again without asking, as it is there already.

use std::mem;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Clones are the same room.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    size: usize,
    taken: Mutex<usize>,
    freed: Condvar,
}

/// What one row takes of it; given back at the latest when it is dropped.
#[derive(Debug, Default)]
#[must_use = "without it the row counts for nothing"]
pub(crate) struct Share {
    /// None is a share of nothing.
    room: Option<Room>,
    bytes: usize,
    taken: bool,
}

impl Room {
    /// A room of so many bytes.
    pub(crate) fn new(size: usize) -> Self {
        Room { inner: Arc::new(Inner { size, taken: Mutex::default(), freed: Condvar::new() }) }
    }

    /// Takes so many bytes. Blocks the thread until there is as much room, or nothing else is there.
    pub(crate) fn share(&self, bytes: usize) -> Share {
        let Inner { size, taken, freed } = &*self.inner;
        let mut taken = taken.lock();
        freed.wait_while(&mut taken, |taken| *taken > 0 && *taken + bytes > *size);
        *taken += bytes;
        drop(taken);
        Share { room: Some(self.clone()), bytes, taken: true }
    }
}

impl Share {
    /// Doesn't count any more.
    pub(crate) fn give_back(&mut self) {
        if let Some(room) = &self.room
            && mem::take(&mut self.taken)
        {
            *room.inner.taken.lock() -= self.bytes;
            room.inner.freed.notify_one();
        }
    }

    /// Counts again, also where there is no room.
    pub(crate) fn take_again(&mut self) {
        if let Some(room) = &self.room
            && !mem::replace(&mut self.taken, true)
        {
            *room.inner.taken.lock() += self.bytes;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Takes a share on a thread of its own, which says when it has it.
    fn wanted(room: &Room, bytes: usize) -> mpsc::Receiver<Share> {
        let (sender, receiver) = mpsc::channel();
        let room = room.clone();
        thread::spawn(move || sender.send(room.share(bytes)));
        receiver
    }

    fn comes(wanted: &mpsc::Receiver<Share>) -> Share {
        wanted.recv_timeout(Duration::from_secs(20)).expect("there is room")
    }

    /// Whether somebody waits who would have to be let in if there were room.
    fn waits(wanted: &mpsc::Receiver<Share>) -> bool {
        wanted.recv_timeout(Duration::from_millis(50)).is_err()
    }

    fn taken(room: &Room) -> usize {
        *room.inner.taken.lock()
    }

    #[test]
    fn nobody_comes_in_before_there_is_room() {
        let room = Room::new(10);
        let (first, second) = (room.share(6), room.share(4));
        let third = wanted(&room, 5);
        assert!(waits(&third));
        drop(second);
        assert!(waits(&third), "four are free, five are wanted");
        drop(first);
        assert_eq!(comes(&third).bytes, 5);
        assert_eq!(taken(&room), 0);
    }

    #[test]
    fn what_is_too_large_comes_in_alone() {
        let room = Room::new(10);
        let small = room.share(1);
        let large = wanted(&room, 1_000);
        assert!(waits(&large));
        drop(small);
        let large = comes(&large);
        let small = wanted(&room, 1);
        assert!(waits(&small));
        drop(large);
        drop(comes(&small));
    }

    #[test]
    fn what_is_under_way_does_not_count_and_a_second_attempt_does() {
        let room = Room::new(10);
        let mut share = room.share(8);
        share.give_back();
        share.give_back();
        let mut other = room.share(8);
        assert_eq!(taken(&room), 8);
        share.take_again();
        share.take_again();
        assert_eq!(taken(&room), 16, "it is there, room or not");
        let third = wanted(&room, 2);
        assert!(waits(&third));
        other.give_back();
        drop(other);
        drop(comes(&third));
        assert_eq!(taken(&room), 8);
        drop(share);
        assert_eq!(taken(&room), 0);
    }
}
