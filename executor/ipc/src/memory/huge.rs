//! Huge pages for large private buffers.
//!
//! Memory fresh from the system costs a page fault for each of its pages, which for a large buffer takes several times
//! as long as filling it. With huge pages there are 512 times fewer of them (on x86-64). Many systems give them only to
//! those who ask; this asks.

use rustix::mm::{Advice, madvise};

/// Asks for huge pages behind the memory of `buffer`, which need not have been touched yet; afterwards it's too late for
/// what has been. It is advice: nothing changes but the time that it takes to fill the buffer, if the system has huge
/// pages and wants to give them.
pub fn prefer_huge_pages(buffer: &mut Vec<u8>) {
    let page = rustix::param::page_size();
    let skipped = buffer.as_ptr().align_offset(page);
    let len = buffer.capacity().saturating_sub(skipped) / page * page;
    if len == 0 {
        return;
    }
    // SAFETY: whole pages inside of the buffer, which are nobody else's and mapped as long as it exists; `skipped` is
    // less than its capacity. The advice changes neither their content nor their protection.
    let _ = unsafe { madvise(buffer.as_mut_ptr().add(skipped).cast(), len, Advice::LinuxHugepage) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_any_size_keep_what_is_in_them() {
        for capacity in [0, 1, 4_095, 4_096, 5 << 20] {
            let mut buffer = Vec::with_capacity(capacity);
            buffer.extend_from_slice(&b"what was there"[..capacity.min(14)]);
            prefer_huge_pages(&mut buffer);
            assert_eq!(buffer, &b"what was there"[..capacity.min(14)]);
            buffer.resize(capacity, 7);
            assert!(buffer.iter().skip(14).all(|byte| *byte == 7));
        }
    }
}
