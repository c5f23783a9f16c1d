//! Seeded randomness: the same seed gives the same run.

/// A small generator (`SplitMix64`). Good enough for tokens that guard nothing.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The generator of one purpose; `stream` keeps two purposes of one seed apart.
    pub(crate) const fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed ^ mix(stream)))
    }

    /// The next 64 bits.
    pub(crate) const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// The next 31 bits: a group of a rid.
    pub(crate) const fn bits31(&mut self) -> u64 {
        self.bits() >> 33
    }

    /// A number below `end`, which is not zero.
    pub(crate) const fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// The next 16 bytes.
    pub(crate) fn bytes16(&mut self) -> [u8; 16] {
        let bits = u128::from(self.bits()) << 64 | u128::from(self.bits());
        bits.to_be_bytes()
    }

    /// `len` characters of an alphabet.
    pub(crate) fn text(&mut self, alphabet: &[u8], len: usize) -> String {
        let letter = |this: &mut Self| {
            let place = this.below(alphabet.len() as u64) as usize;
            char::from(alphabet[place])
        };
        (0..len).map(|_| letter(self)).collect()
    }
}

/// Spreads the bits of a number over all of its 64.
pub(crate) const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A number that stands for a text (FNV-1a), the same in every run.
pub(crate) fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What stands for a token or a ticket in logs: short, and of no use to a thief.
pub(crate) fn short_hash(secret: &str) -> String {
    format!("#{:08x}", mix(digest(secret)) >> 32)
}
