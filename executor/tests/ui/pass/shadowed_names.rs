//! What the macros write does not depend on what names mean in the user's module.
#![forbid(unsafe_code)]
#![deny(warnings)]
#![allow(dead_code, non_camel_case_types)]

mod hostile {
    pub struct Option;
    pub struct Result;
    pub struct Some;
    pub struct None;
    pub struct Ok;
    pub struct Err;
    pub struct String;
    pub trait Task {}
    pub trait Serialize {}
    pub trait Deserialize {}
    pub trait Debug {}
    pub mod serde {}
    pub mod core {}
    pub mod std {}
    #[allow(unused_macros)]
    macro_rules! concat {
        ($($any:tt)*) => {
            compile_error!("not this one")
        };
    }

    #[polypool::task]
    pub fn run(self_: u8, formatter: u8, serializer: u8) -> Vec<u8> {
        vec![self_, formatter, serializer]
    }

    #[polypool::task]
    pub async fn fmt(name: u8) -> u8 {
        name
    }
}

fn main() {
    assert_eq!(hostile::run(1, 2, 3), [1, 2, 3]);
    let _ = hostile::run { self_: 1, formatter: 2, serializer: 3 };
    let _ = hostile::fmt { name: 1 };
}
