//! The alphabet of byte-level vocabularies: each byte stands as one printable character.
//!
//! Printable Latin-1 characters stand for themselves; the 68 other bytes stand, in order, as U+0100 … U+0143
//! (so that a space is `Ġ` and a line feed `Ċ`).

/// Number of bytes that do not stand for themselves.
const N_MOVED: u32 = 68;
const FIRST_MOVED: u32 = 0x100;

const fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The bytes that stand as U+0100 and following.
const MOVED: [u8; N_MOVED as usize] = {
    let mut moved = [0_u8; N_MOVED as usize];
    let (mut byte, mut n) = (0_usize, 0_usize);
    while byte < 256 {
        if !stands_for_itself(byte as u8) {
            moved[n] = byte as u8;
            n += 1;
        }
        byte += 1;
    }
    moved
};

/// Returns the byte that a character of the alphabet stands for.
pub(crate) fn char_to_byte(c: char) -> Option<u8> {
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(byte) => stands_for_itself(byte).then_some(byte),
        Err(_) => MOVED.get(usize::try_from(code.checked_sub(FIRST_MOVED)?).ok()?).copied(),
    }
}

/// Appends the bytes that `text` stands for to `out`; false, with `out` as it was, when a character is not of
/// the alphabet.
pub(crate) fn decode_into(text: &str, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    for c in text.chars() {
        let Some(byte) = char_to_byte(c) else {
            out.truncate(start);
            return false;
        };
        out.push(byte);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_covers_every_byte_once() {
        let mut seen = [0_u32; 256];
        for code in 0..0x200 {
            if let Some(byte) = char::from_u32(code).and_then(char_to_byte) {
                seen[usize::from(byte)] += 1;
            }
        }
        assert!(seen.iter().all(|&n| n == 1));
    }

    #[test]
    fn known_characters() {
        for (c, byte) in [('Ġ', b' '), ('Ċ', b'\n'), ('ĉ', b'\t'), ('č', b'\r'), ('A', b'A'), ('Ń', 0xAD)]
        {
            assert_eq!(char_to_byte(c), Some(byte), "{c}");
        }
        assert_eq!(char_to_byte(' '), None);
        assert_eq!(char_to_byte('語'), None);
    }
}
