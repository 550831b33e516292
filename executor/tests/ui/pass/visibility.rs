//! The struct and its fields are seen from where the function is seen.
#![forbid(unsafe_code)]
#![deny(warnings)]

mod outer {
    pub mod inner {
        #[polypool::task]
        pub fn everywhere(n: u8) -> u8 {
            n
        }

        #[polypool::task]
        pub(crate) fn in_the_crate(n: u8) -> u8 {
            n
        }

        #[polypool::task]
        pub(in crate::outer) fn in_outer(n: u8) -> u8 {
            n
        }

        #[polypool::task]
        fn here(n: u8) -> u8 {
            n
        }

        pub fn private() -> usize {
            std::mem::size_of_val(&here { n: here(1) })
        }
    }

    pub fn restricted() -> u8 {
        let inner::in_outer { n } = inner::in_outer { n: inner::in_outer(2) };
        n
    }
}

fn main() {
    use outer::inner::{everywhere, in_the_crate};

    assert_eq!(everywhere { n: everywhere(1) }.n, 1);
    assert_eq!(in_the_crate { n: in_the_crate(1) }.n, 1);
    assert_eq!(outer::restricted(), 2);
    assert_eq!(outer::inner::private(), 1);
}
