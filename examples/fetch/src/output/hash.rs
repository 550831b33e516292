//! SHA-256, of bodies and of what their names are made from. It comes from the library that TLS brings along, which
//! takes half the time of a portable one where the processor has no instructions for it.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};

/// A hash of all that has come so far. It takes memory from the first byte on; most bodies wait a while without a hash.
#[derive(Clone)]
pub(super) struct Sha256(Option<Context>);

impl Sha256 {
    pub(super) fn new() -> Self {
        Sha256(None)
    }

    pub(super) fn update(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_or_insert_with(start).update(bytes.as_ref());
    }

    /// The hash, as hexadecimal digits.
    pub(super) fn finish(self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |four_bits: u8| char::from(DIGITS[usize::from(four_bits)]);
        self.0
            .unwrap_or_else(start)
            .finish()
            .as_ref()
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
            .collect()
    }

    /// The hash of some bytes.
    #[cfg(test)]
    pub(super) fn of(bytes: impl AsRef<[u8]>) -> String {
        let mut hash = Sha256::new();
        hash.update(bytes);
        hash.finish()
    }
}

fn start() -> Context {
    Context::new(&SHA256)
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_standard() {
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Sha256::of("abc"), abc);
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Sha256::new().finish(), nothing);
        let mut pieces = Sha256::new();
        pieces.update("a");
        let mut other = pieces.clone();
        pieces.update("bc");
        other.update("cb");
        assert_eq!(pieces.finish(), abc);
        assert_ne!(other.finish(), abc);
    }
}
