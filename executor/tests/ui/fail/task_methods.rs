struct Images {
    width: u32,
}

impl Images {
    #[polypool::task]
    fn halved(&self) -> u32 {
        self.width / 2
    }

    #[polypool::task]
    fn copied(images: Self, more: Vec<Self>) -> usize {
        let _ = images;
        more.len()
    }
}

fn main() {}
