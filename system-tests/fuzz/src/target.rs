//! What is fed, and what it promises.

use rand_chacha::ChaCha8Rng;

/// One parser or decoder at an edge.
pub trait Target {
    /// As in `--target` and in the regression folder.
    fn name(&self) -> &'static str;

    /// Valid inputs: what mutation begins with.
    fn corpus(&self) -> Vec<Vec<u8>>;

    /// Pieces that mean something to the grammar; mutation puts them in.
    fn words(&self) -> &'static [&'static str] {
        &[]
    }

    /// An input made from the grammar, where mutation alone would not come far.
    fn generate(&self, _random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
        None
    }

    /// Largest input, in bytes: a little more than what the edge lets in.
    fn largest(&self) -> usize {
        256 * 1024
    }

    /// Feeds one input. An error says which promise was broken; a refusal that names its place is none.
    fn feed(&self, input: &[u8]) -> Result<(), String>;
}

/// A refusal must say something, and must not repeat the whole of what was sent.
pub fn refusal(error: impl std::fmt::Display, named: &[&str]) -> Result<(), String> {
    let text = error.to_string();
    if text.trim().is_empty() {
        return Err("a refusal says nothing".to_owned());
    }
    if !named.is_empty() && !named.iter().any(|name| text.contains(name)) {
        return Err(format!("a refusal does not name its place: {text:?}"));
    }
    Ok(())
}

/// What was written must read back as what it was.
pub fn reads_back<T: PartialEq + std::fmt::Debug>(
    wrote: &T,
    read: Result<T, impl std::fmt::Display>,
) -> Result<(), String> {
    match read {
        Ok(read) if read == *wrote => Ok(()),
        Ok(read) => Err(format!("wrote {wrote:?}, read {read:?}")),
        Err(error) => Err(format!("wrote {wrote:?}, which is refused: {error}")),
    }
}
