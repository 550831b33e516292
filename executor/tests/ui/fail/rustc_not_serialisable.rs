struct Image;

#[polypool::task]
fn turn(image: Image) -> u32 {
    let Image = image;
    90
}

#[polypool::task]
fn load(path: String) -> Image {
    drop(path);
    Image
}

fn main() {}
