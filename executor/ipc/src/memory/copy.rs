//! Copies between shared memory and memory of our own, while another process or thread may write to the shared side.
//!
//! A plain `memcpy` of bytes that somebody writes at the same moment is a data race, and undefined. What is done here
//! is equal to a series of relaxed atomic accesses: the copy may be torn (some bytes old, some new), and nothing worse.
//! Up to [`BLOCK`] bytes it is just that, word by word; above, on x86-64, one `rep movsb`, which the compiler can't see
//! through and for which it must thus assume no more than such a series; it runs at the speed of the caches. Between
//! the two, from 16 bytes on, it's pairs of words, in the same way: what follows usually reads the copy in pairs as
//! well, and a read that spans two writes just made has to wait for both.
//!
//! From [`LONG`] bytes on neither side is in a cache, and the time is that of the memory: a loop over cache lines that
//! asks for both sides' lines well before it needs them, as opaque as the others. Stores that go past the caches
//! (`movntdq`), which the C library uses there, were tried: they were no faster than `rep movsb` on the machine where
//! this was measured, and the loop was by a quarter.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// From this many bytes on, the instruction for blocks is faster than words, its start-up included.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const BLOCK: usize = 512;
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
const BLOCK: usize = usize::MAX;

/// From this many bytes on, what is copied is beyond the caches of a core, and fetching it early pays.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const LONG: usize = 3 << 20;
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
const LONG: usize = usize::MAX;

/// From this many bytes on, a copy is made in steps of as many.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const STEP: usize = 16;
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
const STEP: usize = usize::MAX;

/// Copies `count` bytes out of shared memory.
///
/// # Safety
///
/// `from` must be readable, in memory that is only ever accessed atomically or by this module while it is shared, for
/// `count` bytes; `to` must be writable memory of our own for as many, and the two must not overlap.
#[inline]
pub(crate) unsafe fn load(from: *const u8, to: *mut u8, count: usize) {
    if count >= BLOCK {
        // SAFETY: as the caller promises.
        unsafe { if count < LONG { block(from, to, count) } else { long(from, to, count) } };
        return;
    }
    if count >= STEP {
        // SAFETY: as the caller promises.
        unsafe { steps(from, to, count) };
        return;
    }
    let mut at = 0;
    if from.addr().is_multiple_of(8) {
        while at + 8 <= count {
            // SAFETY: in bounds as the caller promises, aligned as just checked (steps of 8 keep it); atomics may race
            // with atomics.
            let word = unsafe { &*from.add(at).cast::<AtomicU64>() }.load(Ordering::Relaxed);
            // SAFETY: `to` has room for the eight bytes; it need not be aligned.
            unsafe { to.add(at).cast::<u64>().write_unaligned(word) };
            at += 8;
        }
    }
    while at < count {
        // SAFETY: in bounds as the caller promises; bytes are always aligned.
        unsafe { to.add(at).write((*from.add(at).cast::<AtomicU8>()).load(Ordering::Relaxed)) };
        at += 1;
    }
}

/// Copies `count` bytes into shared memory.
///
/// # Safety
///
/// As for [`load`], with the roles of `from` and `to` exchanged.
#[inline]
pub(crate) unsafe fn store(from: *const u8, to: *mut u8, count: usize) {
    if count >= BLOCK {
        // SAFETY: as the caller promises.
        unsafe { if count < LONG { block(from, to, count) } else { long(from, to, count) } };
        return;
    }
    if count >= STEP {
        // SAFETY: as the caller promises.
        unsafe { steps(from, to, count) };
        return;
    }
    let mut at = 0;
    if to.addr().is_multiple_of(8) {
        while at + 8 <= count {
            // SAFETY: `from` has the eight bytes; it need not be aligned.
            let word = unsafe { from.add(at).cast::<u64>().read_unaligned() };
            // SAFETY: in bounds as the caller promises, aligned as just checked; atomics may race with atomics.
            unsafe { &*to.add(at).cast::<AtomicU64>() }.store(word, Ordering::Relaxed);
            at += 8;
        }
    }
    while at < count {
        // SAFETY: in bounds as the caller promises; bytes are always aligned.
        unsafe { (*to.add(at).cast::<AtomicU8>()).store(from.add(at).read(), Ordering::Relaxed) };
        at += 1;
    }
}

/// # Safety
///
/// `from` readable and `to` writable for `count` bytes, at least [`STEP`], not overlapping.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
unsafe fn steps(from: *const u8, to: *mut u8, count: usize) {
    let mut at = 0;
    loop {
        // SAFETY: the two instructions read and write 16 bytes in bounds, aligned or not. To the compiler they are
        // opaque, and what they do could be written as relaxed atomic byte accesses.
        unsafe {
            std::arch::asm!(
                "movups {pair}, [{from}]",
                "movups [{to}], {pair}",
                pair = out(xmm_reg) _,
                from = in(reg) from.add(at),
                to = in(reg) to.add(at),
                options(nostack, preserves_flags),
            );
        }
        if at + STEP == count {
            return;
        }
        // The last step may begin within the one before.
        at = (at + STEP).min(count - STEP);
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn steps(_from: *const u8, _to: *mut u8, _count: usize) {
    unreachable!("no copy is that long")
}

/// # Safety
///
/// `from` readable and `to` writable for `count` bytes, not overlapping.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn block(from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: the instruction reads and writes exactly the bytes the caller vouches for; the direction flag is clear on
    // entry, as the ABI demands. To the compiler it is opaque, and what it does could be written as relaxed atomic byte
    // accesses.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") count => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn block(_from: *const u8, _to: *mut u8, _count: usize) {
    unreachable!("no copy is that long")
}

/// What is fetched at a time.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const LINE: usize = 64;

/// # Safety
///
/// `from` readable and `to` writable for `count` bytes, at least two [`LINE`]s, not overlapping.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(never)]
unsafe fn long(from: *const u8, to: *mut u8, count: usize) {
    // Up to where the lines of `to` begin, and what is left behind the last one; both shorter than a line.
    let first = to.addr().wrapping_neg() % LINE;
    let lines = (count - first) / LINE * LINE;
    let done = first + lines;
    // SAFETY: as the caller promises; `first` is less than a line, and there are at least two.
    unsafe { block(from, to, first) };
    // SAFETY: the loop reads and writes `lines` bytes, a multiple of a line and not zero, from `first` on, in bounds as
    // `first + lines` is at most `count`. The instructions that fetch early lead beyond the end, but they access
    // nothing that a program could notice and never fault. To the compiler the loop is opaque, and what it does could
    // be written as relaxed atomic byte accesses.
    unsafe {
        std::arch::asm!(
            "2:",
            "prefetcht0 [{from} + 1024]",
            "prefetcht0 [{to} + 1024]",
            "movups {a}, [{from}]",
            "movups {b}, [{from} + 16]",
            "movups {c}, [{from} + 32]",
            "movups {d}, [{from} + 48]",
            "movups [{to}], {a}",
            "movups [{to} + 16], {b}",
            "movups [{to} + 32], {c}",
            "movups [{to} + 48], {d}",
            "add {from}, 64",
            "add {to}, 64",
            "sub {left}, 64",
            "jnz 2b",
            from = inout(reg) from.add(first) => _,
            to = inout(reg) to.add(first) => _,
            left = inout(reg) lines => _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack),
        );
    }
    // SAFETY: the rest, in bounds as the caller promises.
    unsafe { block(from.add(done), to.add(done), count - done) };
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn long(_from: *const u8, _to: *mut u8, _count: usize) {
    unreachable!("no copy is that long")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Copy = unsafe fn(*const u8, *mut u8, usize);

    /// Copies `count` bytes at these distances from a line's begin, and looks at all bytes, also those before and
    /// behind.
    fn check(copy: Copy, from: usize, to: usize, count: usize, source: &[u8], target: &mut [u8]) {
        const AROUND: usize = 256;
        let aligned = |bytes: &[u8]| bytes.as_ptr().addr().wrapping_neg() % 64 + 64;
        let (from, to) = (aligned(source) + from, aligned(target) + to);
        let window = to - 64..to + count + AROUND;
        target[window.clone()].fill(0xee);
        let target_from = &source[from..from + count];
        // SAFETY: both vectors have the bytes, as the indexing just now shows, and are two.
        unsafe { copy(target_from.as_ptr(), target[to..to + count].as_mut_ptr(), count) };
        assert!(target[to..to + count] == *target_from, "{from} {to} {count}: another content");
        assert!(
            target[window.start..to].iter().all(|byte| *byte == 0xee),
            "{from} {to} {count}: written before the begin"
        );
        assert!(target[to + count..window.end].iter().all(|byte| *byte == 0xee), "{from} {to} {count}: beyond the end");
    }

    /// No byte is like those in its neighbourhood, and none is that of the target.
    fn vectors(len: usize) -> (Vec<u8>, Vec<u8>) {
        ((0..len + 512).map(|at| (at * 7 % 229) as u8).collect(), vec![0; len + 512])
    }

    #[test]
    fn every_length_at_every_alignment_of_words() {
        let (source, mut target) = vectors(700);
        let lengths = if cfg!(miri) { 0..40 } else { 0..560 };
        for count in lengths {
            for from in 0..9 {
                for to in 0..9 {
                    check(load, from, to, count, &source, &mut target);
                    check(store, from, to, count, &source, &mut target);
                }
            }
        }
    }

    #[test]
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    fn long_copies_of_every_length_at_every_alignment_of_lines() {
        let (source, mut target) = vectors(1_024);
        for to in 0..LINE {
            for from in [0, 1, 8, 16, 31, 63] {
                for count in 2 * LINE..4 * LINE + 3 {
                    check(long, from, to, count, &source, &mut target);
                }
            }
        }
    }

    #[test]
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    fn copies_around_the_length_from_which_they_are_long() {
        let (source, mut target) = vectors(LONG + 100);
        for count in [LONG - 1, LONG, LONG + 1, LONG + 99] {
            for (from, to) in [(0, 0), (1, 0), (0, 1), (7, 60), (63, 63)] {
                check(load, from, to, count, &source, &mut target);
                check(store, from, to, count, &source, &mut target);
            }
        }
    }
}
