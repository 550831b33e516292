//! Tasks can be written by `macro_rules!`.
#![forbid(unsafe_code)]
#![deny(warnings)]

use polypool::Task;

macro_rules! tasks {
    ($($(#[$attribute:meta])* $visibility:vis $name:ident = $text:literal ($argument:ident: $type:ty) -> $result:ty $body:block)*) => {
        $(
            #[polypool::task(name = $text)]
            $(#[$attribute])*
            $visibility fn $name($argument: $type) -> $result $body
        )*
    };
}

tasks! {
    /// Half of it.
    pub half = "half" (n: u32) -> u32 { n / 2 }
    echo = "echo" (data: Vec<u8>) -> Option<Vec<u8>> { Some(data) }
}

macro_rules! whole {
    ($function:item) => {
        #[polypool::task]
        $function
    };
}

whole! {
    /// As it is.
    pub async fn whole(n: u8) -> u8 {
        n
    }
}

fn main() {
    assert_eq!(whole::SIGNATURE, "fn(n: u8) -> u8");
    let _ = (whole(1), whole { n: 1 });
    assert_eq!((half(4), half::NAME, half::SIGNATURE), (2, "half", "fn(n: u32) -> u32"));
    assert_eq!((echo(vec![1]), echo::SIGNATURE), (Some(vec![1]), "fn(data: Vec<u8>) -> Option<Vec<u8>>"));
    let call = echo { data: vec![200; 1_000] };
    assert_eq!(rmp_serde::to_vec(&call).unwrap().len(), 1_004);
    let _ = half { n: 1 };
}
