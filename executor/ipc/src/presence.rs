//! Who is alive: a board of presence words, one seat for each process, on which every claim of a process to a lock,
//! permit or seat rests.
//!
//! A lock word in shared memory names its holder. When the holder dies, somebody must tell the others, and the only one
//! who surely survives is the kernel. It offers to do this for the words of a *robust list* (`set_robust_list(2)`, made
//! for pthread mutexes): when a thread ends, however it does, the kernel walks the thread's list, sets [`OWNER_DIED`]
//! in each word that holds the thread's id, and wakes one who waits for it.
//!
//! Here the words are not locks but presences: each process takes one seat on the board, and its word is held by the
//! [keeper](crate::wait::reactor), a thread that ends only with the process. An object (a lock, a queue …) names its
//! holder by [`Seat`], and whoever waits for the holder waits for the object's word and the holder's presence at once.
//! So there is one robust word for each process instead of one for each lock, a guard may move between threads, and the
//! same word serves permits, barrier seats and readers.
//!
//! ```text
//!   board (a memfd)                          an object (another memfd)
//!   ┌────────┬────────────┬────┬──────┐      ┌──────────────────────────┐
//!   │ seat 1 │ word       │ pid│ next │◀──┐  │ lock word: seat 2, gen 7 │
//!   │ seat 2 │ tid | …    │ …  │  ●───┼─┐ └──┤ ...                      │
//!   └────────┴────────────┴────┴──────┘ │    └──────────────────────────┘
//!        robust list of the keeper ◀────┘
//! ```
//!
//! # The life of a seat
//!
//! | word | meaning | next |
//! |---|---|---|
//! | 0 | free, never used or left in good order | taken |
//! | tid + OWNER_DIED | being taken: counts as dead | taken, or dead if its taker dies here |
//! | tid | alive | dead (by the kernel), or 0 |
//! | OWNER_DIED without a tid | dead | taken again, with the next generation |
//!
//! The generation is raised while the word still says dead, so a reader that finds an old generation, or a word that
//! says dead, knows that the holder it looks for is gone; there is no moment at which an old name counts as alive. Free
//! seats are taken in turn, so a generation of 18 bits comes round only after a quarter of a million processes for each
//! of 4,095 seats.
//!
//! # Boards
//!
//! The first object that a process makes makes a board. A process that receives a handle joins the board that comes
//! with it, and sits on it as long as it has objects of it; for its own objects it uses its own board. What a process
//! holds on each board is a seat of its own.
//!
//! The kernel looks at 2,048 entries of a robust list only, so a process can sit on as many boards: have objects that
//! were made by as many processes at a time. A further one is refused ([`PresenceError::TooManyBoards`]), rather than
//! deaths going unnoticed.
//!
//! # Forks
//!
//! A child that a process makes by a plain `fork` has no keeper, and no seat: it takes seats of its own, on the boards
//! it has inherited, as it first uses their objects (`forked.rs`). If there is none for it, or no thread, that use
//! panics. After `exec` there is nothing left of them.
//!
//! # What a lying peer can do
//!
//! Declare others dead or alive, and so break locks, or keep them from being broken: all the processes that share an
//! object can spoil it for each other. Links of the robust list stand in the board as well; the kernel follows them
//! when *we* die, changes only words that hold our own thread id, and stops at anything it can't read.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::forked;
use crate::memory::segment::{Layout, Segment};
use crate::sys;
use crate::travel::Fd;
use crate::wait::futex;

/// Set by the kernel in the word of a dead process; the rest of the word is then cleared, but for [`WAITERS`].
const OWNER_DIED: u32 = 0x4000_0000;

/// Asks the kernel to wake somebody when it sets [`OWNER_DIED`].
const WAITERS: u32 = 0x8000_0000;

const TID: u32 = 0x3fff_ffff;

/// How many processes can sit on a board at a time.
const SEATS: usize = 4_095;

const SLOT_BITS: u32 = 12;
const GENERATION_BITS: u32 = 18;
const GENERATION: u32 = (1 << GENERATION_BITS) - 1;

const MAGIC: u64 = u64::from_le_bytes(*b"pp-board");

/// How long the dead are given to leave; see [`Board::has_left`].
const PATIENCE: Duration = Duration::from_millis(100);

/// The bits of a word that a [`Seat`] takes; the two highest are free for the flags of its user.
pub(crate) const SEAT_BITS: u32 = (1 << (SLOT_BITS + GENERATION_BITS)) - 1;

/// How many entries of a robust list the kernel looks at when a thread ends (its `ROBUST_LIST_LIMIT`). Those beyond it
/// would count as alive for ever.
const MOST_BOARDS: usize = 2_048;

/// Why this process can't share an object with others: the inner error of the [`io::Error`] of kind
/// [`QuotaExceeded`](io::ErrorKind::QuotaExceeded) that making or receiving a handle ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PresenceError {
    /// As many processes as can share objects of one origin do so already.
    #[error("{limit} processes share objects already, and no more can join them")]
    #[non_exhaustive]
    TooManyProcesses {
        /// How many can.
        limit: usize,
    },
    /// This process has objects that were made by as many other processes as it can have. The kernel would not tell
    /// those of a further one when this process dies, and what it holds would never be free again.
    #[error("this process has objects of {limit} processes already, and the kernel tells no more of them of its death")]
    #[non_exhaustive]
    TooManyBoards {
        /// Of how many it can.
        limit: usize,
    },
}

impl From<PresenceError> for io::Error {
    fn from(error: PresenceError) -> Self {
        io::Error::new(io::ErrorKind::QuotaExceeded, error)
    }
}

/// A process, as objects name it: its seat on the board and the generation of that seat. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Seat(u32);

impl Seat {
    fn new(slot: usize, generation: u32) -> Self {
        Seat((slot as u32) << GENERATION_BITS | (generation & GENERATION))
    }

    /// The seat whose bits stand in a word, if any does.
    #[inline]
    pub(crate) fn from_word(word: u32) -> Option<Self> {
        let bits = word & SEAT_BITS;
        (bits >> GENERATION_BITS != 0).then_some(Seat(bits))
    }

    #[inline]
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    fn slot(self) -> usize {
        (self.0 >> GENERATION_BITS) as usize
    }

    fn generation(self) -> u32 {
        self.0 & GENERATION
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seat({}, generation {})", self.slot(), self.generation())
    }
}

#[repr(C, align(64))]
struct Head {
    magic: AtomicU64,
    /// Where to look for a free seat first.
    turn: AtomicU32,
    unused: [AtomicU32; 13],
}

#[repr(C, align(64))]
struct Words {
    /// The next entry of the robust list of the process that sits here; an address in that process.
    next: AtomicU64,
    word: AtomicU32,
    generation: AtomicU32,
    pid: AtomicU32,
    /// When the process started, so that another process with the same number isn't taken for it.
    started_low: AtomicU32,
    started_high: AtomicU32,
    unused: [AtomicU32; 9],
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Head {}
// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Words {}

const BOARD_LEN: usize = size_of::<Head>() + (SEATS + 1) * size_of::<Words>();

/// From an entry of the robust list to its word.
const FUTEX_OFFSET: i64 = offset_of!(Words, word) as i64 - offset_of!(Words, next) as i64;

/// The board and this process's seat on it.
pub(crate) struct Board {
    segment: Arc<Segment>,
    /// 0: none, as this process is a forked child that has not needed one yet.
    seat: AtomicU32,
}

/// How a holder is doing.
pub(crate) enum Holder<'a> {
    /// Alive as long as the word has this value.
    Alive(&'a AtomicU32, u32),
    /// Gone. Its number, if the board still knows it.
    Dead(Option<u32>),
}

type Boards = BTreeMap<usize, Weak<Board>>;

/// The boards of this process, by the address of their mapping.
static BOARDS: Mutex<Boards> = Mutex::new(BTreeMap::new());

/// The board for the objects that this process makes.
static OWN: Mutex<Option<Arc<Board>>> = Mutex::new(None);

/// Whom we are waiting for to leave, and since when.
static LEAVING: Mutex<Vec<(usize, Seat, Instant)>> = Mutex::new(Vec::new());

fn boards() -> MutexGuard<'static, Boards> {
    BOARDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The boards, held over a fork.
pub(crate) struct Frozen {
    _own: MutexGuard<'static, Option<Arc<Board>>>,
    boards: MutexGuard<'static, Boards>,
    _leaving: MutexGuard<'static, Vec<(usize, Seat, Instant)>>,
}

pub(crate) fn freeze() -> Frozen {
    Frozen {
        _own: OWN.lock().unwrap_or_else(PoisonError::into_inner),
        boards: boards(),
        _leaving: LEAVING.lock().unwrap_or_else(PoisonError::into_inner),
    }
}

impl Frozen {
    /// In a forked child: the seats are the parent's.
    pub(crate) fn forget(&mut self) {
        for board in self.boards.values().filter_map(Weak::upgrade) {
            board.seat.store(0, Ordering::Relaxed);
        }
    }
}

impl Board {
    /// The board for the objects that this process makes. Never one that came from elsewhere: whoever has a board can
    /// declare those on it dead.
    pub(crate) fn own() -> io::Result<Arc<Board>> {
        let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(board) = &*own {
            return Ok(board.clone());
        }
        let segment = Segment::create(BOARD_LEN)?;
        segment.at::<Head>(0).magic.store(MAGIC, Ordering::Release);
        let mut boards = boards();
        let board = Board::sit_down(&mut boards, segment)?;
        *own = Some(board.clone());
        Ok(board)
    }

    /// The board behind a descriptor that came with an object.
    pub(crate) fn join(fd: &Fd) -> io::Result<Arc<Board>> {
        let segment = Segment::open(fd, BOARD_LEN)?;
        if segment.at::<Head>(0).magic.load(Ordering::Acquire) != MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the memory that came with a handle is not a board of presences",
            ));
        }
        let mut boards = boards();
        match boards.get(&segment.start().addr()).and_then(Weak::upgrade) {
            Some(board) => Ok(board),
            None => Board::sit_down(&mut boards, segment),
        }
    }

    fn sit_down(boards: &mut Boards, segment: Arc<Segment>) -> io::Result<Arc<Board>> {
        let seat = AtomicU32::new(Board::take_seat(&segment)?.bits());
        let board = Arc::new(Board { seat, segment });
        boards.retain(|_, board| board.strong_count() > 0);
        boards.insert(board.segment.start().addr(), Arc::downgrade(&board));
        Ok(board)
    }

    fn take_seat(segment: &Arc<Segment>) -> io::Result<Seat> {
        let tid = crate::wait::reactor::keeper()?;
        if robust::count() >= MOST_BOARDS {
            return Err(PresenceError::TooManyBoards { limit: MOST_BOARDS }.into());
        }
        let started = sys::start_time();
        let turn = segment.at::<Head>(0).turn.fetch_add(1, Ordering::Relaxed) as usize;
        for step in 0..SEATS {
            let slot = 1 + (turn + step) % SEATS;
            let Some(generation) = robust::take(segment, slot, tid) else { continue };
            let words = words(segment, slot);
            words.pid.store(std::process::id(), Ordering::Relaxed);
            words.started_low.store(started as u32, Ordering::Relaxed);
            words.started_high.store((started >> 32) as u32, Ordering::Relaxed);
            // From here on it counts as alive.
            words.word.store(tid | WAITERS, Ordering::Release);
            return Ok(Seat::new(slot, generation));
        }
        Err(PresenceError::TooManyProcesses { limit: SEATS }.into())
    }

    /// This process's seat.
    ///
    /// # Panics
    ///
    /// In a child made by a plain `fork`, as it first needs one: if there is no seat or no thread for it. What needs a
    /// seat has changed nothing yet then.
    #[inline]
    pub(crate) fn seat(&self) -> Seat {
        match self.seat.load(Ordering::Relaxed) {
            0 => self.seat_after_fork(),
            bits => Seat(bits),
        }
    }

    /// A forked child sits down. Without a seat of its own it can't go on: by its parent's, all that the parent holds
    /// would be its own as well, and by none at all, what it takes would never be given back. The next call tries
    /// again.
    #[cold]
    fn seat_after_fork(&self) -> Seat {
        let boards = boards();
        let taken = match self.seat.load(Ordering::Relaxed) {
            0 => Board::take_seat(&self.segment),
            bits => Ok(Seat(bits)),
        };
        if let Ok(seat) = taken {
            self.seat.store(seat.bits(), Ordering::Relaxed);
        }
        drop(boards);
        taken.unwrap_or_else(|error| {
            panic!("a process that was forked can't have a presence of its own, by which others know that it lives: {error}")
        })
    }

    /// Whether what has these bits as its holder is held by this process, and not by the parent of which it was forked.
    /// Asks nobody else, and takes no seat.
    #[inline]
    pub(crate) fn is_mine(&self, holder: u32) -> bool {
        forked::generation() == 0
            || (holder & SEAT_BITS != 0 && holder & SEAT_BITS == self.seat.load(Ordering::Relaxed))
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Whether the process with that seat is alive.
    pub(crate) fn look(&self, seat: Seat) -> Holder<'_> {
        let words = words(&self.segment, seat.slot());
        let word = words.word.load(Ordering::Acquire);
        let pid = words.pid.load(Ordering::Relaxed);
        if words.generation.load(Ordering::Acquire) & GENERATION != seat.generation() {
            return Holder::Dead(None);
        }
        if word & OWNER_DIED != 0 || word & TID == 0 {
            return Holder::Dead(Some(pid));
        }
        Holder::Alive(&words.word, word)
    }

    #[inline]
    pub(crate) fn is_dead(&self, seat: Seat) -> bool {
        matches!(self.look(seat), Holder::Dead(_))
    }

    /// The number of a process that is dead, if its seat hasn't been taken again.
    pub(crate) fn pid_of_dead(&self, seat: Seat) -> Option<u32> {
        match self.look(seat) {
            Holder::Dead(pid) => pid,
            Holder::Alive(..) => None,
        }
    }

    /// The number of the process that has that seat, if it's still its.
    pub(crate) fn pid_of(&self, seat: Seat) -> Option<u32> {
        let words = words(&self.segment, seat.slot());
        let pid = words.pid.load(Ordering::Relaxed);
        (words.generation.load(Ordering::Acquire) & GENERATION == seat.generation()).then_some(pid)
    }

    /// Where the presence word of a seat stands in the board's memory.
    pub(crate) fn offset(&self, word: &AtomicU32) -> usize {
        word.as_ptr().addr() - self.segment.start().addr()
    }

    /// Passes the news of a death on: the kernel wakes only one of those who wait.
    pub(crate) fn tell(&self, dead: Seat) {
        futex::wake_all(&words(&self.segment, dead.slot()).word);
    }

    /// Whether nothing of a dead process runs any more. Never blocks; those who are told "no" look again.
    ///
    /// The threads of a killed process end one by one, and the keeper may be among the first; another one may still be
    /// about to write, or to give a lock back, for the fraction of a millisecond that it takes the kernel to reach it.
    /// Nobody inherits before that.
    ///
    /// It is "yes" after [`PATIENCE`] in any case, which matters to a process that has replaced itself by `exec`: none
    /// of its old threads runs any more, but that can't be told from outside. Where `/proc` doesn't show the process
    /// (another pid namespace), it's "yes" at once.
    pub(crate) fn has_left(&self, dead: Seat) -> bool {
        let words = words(&self.segment, dead.slot());
        let pid = words.pid.load(Ordering::Relaxed);
        let started = u64::from(words.started_low.load(Ordering::Relaxed))
            | u64::from(words.started_high.load(Ordering::Relaxed)) << 32;
        if words.generation.load(Ordering::Acquire) & GENERATION != dead.generation() {
            return true; // So long gone that its seat has been taken again.
        }
        let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return true };
        let board = self.segment.start().addr();
        let runs = sys::may_still_run(pid, started);
        let mut leaving = LEAVING.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.retain(|(_, _, since)| since.elapsed() < 10 * PATIENCE);
        match leaving.iter().find(|(at, seat, _)| (*at, *seat) == (board, dead)) {
            _ if !runs => true,
            Some((.., since)) => since.elapsed() > PATIENCE,
            None => {
                leaving.push((board, dead, Instant::now()));
                false
            }
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // The last object of this board has gone. (A new `Board` for the same memory takes another seat.)
        let seat = *self.seat.get_mut();
        if seat != 0 {
            robust::leave(&self.segment, Seat(seat).slot());
        }
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("seat", &Seat(self.seat.load(Ordering::Relaxed))).finish_non_exhaustive()
    }
}

fn words(segment: &Segment, slot: usize) -> &Words {
    segment.at(size_of::<Head>() + slot.min(SEATS) * size_of::<Words>())
}

/// The robust list of the keeper.
pub(crate) mod robust {
    use std::mem::size_of;
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use super::{FUTEX_OFFSET, GENERATION, OWNER_DIED, Segment, TID, futex, words};

    /// `struct robust_list_head` of the kernel, which reads it when the keeper ends. Changed one store at a time, so
    /// that it makes sense whenever that is.
    #[repr(C)]
    struct ListHead {
        next: AtomicU64,
        futex_offset: AtomicI64,
        pending: AtomicU64,
    }

    static HEAD: ListHead =
        ListHead { next: AtomicU64::new(0), futex_offset: AtomicI64::new(0), pending: AtomicU64::new(0) };

    /// Our seats, in the order of the list, the last one first in it. The links themselves stand in shared memory and
    /// are never read by us.
    static SEATS: Mutex<Vec<(Arc<Segment>, usize)>> = Mutex::new(Vec::new());

    /// The list, held over a fork.
    pub(crate) struct Frozen(MutexGuard<'static, Vec<(Arc<Segment>, usize)>>);

    pub(crate) fn freeze() -> Frozen {
        Frozen(SEATS.lock().unwrap_or_else(PoisonError::into_inner))
    }

    impl Frozen {
        /// In a forked child: the list is the parent's keeper's. The child's own, when there is one, begins anew.
        pub(crate) fn forget(&mut self) {
            std::mem::forget(std::mem::take(&mut *self.0));
            HEAD.next.store(head(), Ordering::SeqCst);
            HEAD.pending.store(0, Ordering::SeqCst);
        }
    }

    fn head() -> u64 {
        (&raw const HEAD).addr() as u64
    }

    fn address(seat: &(Arc<Segment>, usize)) -> u64 {
        words(&seat.0, seat.1).next.as_ptr().addr() as u64
    }

    /// How many entries it has.
    pub(super) fn count() -> usize {
        SEATS.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Makes the list that of the calling thread, which must not end before the process.
    pub(crate) fn adopt() -> std::io::Result<()> {
        HEAD.futex_offset.store(FUTEX_OFFSET, Ordering::SeqCst);
        HEAD.next.store(head(), Ordering::SeqCst);
        // SAFETY: the head is a static of the layout that the kernel asks for, so it's valid as long as the thread is;
        // the entries are in mappings that stay until they have been taken out of the list. The C library's own robust
        // list of this thread is replaced; it's empty, as this thread locks no robust pthread mutex.
        let result = unsafe { libc::syscall(libc::SYS_set_robust_list, &raw const HEAD, size_of::<ListHead>()) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    /// Takes a seat, if it's free or its last owner is dead, and enters it into the list. Until the word is set to the
    /// plain thread id, the seat counts as dead. Returns its new generation.
    pub(super) fn take(segment: &Arc<Segment>, slot: usize, tid: u32) -> Option<u32> {
        let mut seats = SEATS.lock().unwrap_or_else(PoisonError::into_inner);
        let words = words(segment, slot);
        let before = words.word.load(Ordering::Acquire);
        if before & TID != 0 {
            return None;
        }
        let entry = words.next.as_ptr().addr() as u64;
        // Should we die between the next line and the entry into the list, the kernel looks at the pending entry too.
        HEAD.pending.store(entry, Ordering::SeqCst);
        let taken = words.word.compare_exchange(before, tid | OWNER_DIED, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let generation = taken.then(|| {
            words.next.store(seats.last().map_or_else(head, address), Ordering::SeqCst);
            HEAD.next.store(entry, Ordering::SeqCst);
            seats.push((segment.clone(), slot));
            let generation = words.generation.load(Ordering::Relaxed).wrapping_add(1) & GENERATION;
            words.generation.store(generation, Ordering::Release);
            generation
        });
        HEAD.pending.store(0, Ordering::SeqCst);
        generation
    }

    /// Gives a seat up.
    pub(super) fn leave(segment: &Arc<Segment>, slot: usize) {
        let mut seats = SEATS.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = seats.iter().position(|seat| Arc::ptr_eq(&seat.0, segment) && seat.1 == slot) else { return };
        let entry = address(&seats[at]);
        // Should we die between the next line and the last one, the kernel looks at the pending entry too.
        HEAD.pending.store(entry, Ordering::SeqCst);
        let older = if at == 0 { head() } else { address(&seats[at - 1]) };
        match seats.get(at + 1) {
            Some((segment, slot)) => words(segment, *slot).next.store(older, Ordering::SeqCst),
            None => HEAD.next.store(older, Ordering::SeqCst),
        }
        let (segment, slot) = seats.remove(at);
        let words = words(&segment, slot);
        words.word.store(0, Ordering::Release);
        HEAD.pending.store(0, Ordering::SeqCst);
        futex::wake_all(&words.word);
    }
}
