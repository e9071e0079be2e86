//! The key that authenticates the cookies of the simulated peers.

use warmhop_core::affinity::Authenticator;

/// The cluster's key for cookies: not secret here, but sensitive to every byte.
pub(crate) struct Key;

impl Authenticator for Key {
    fn tag(&self, bytes: &[u8]) -> [u8; 16] {
        let mut state = [0xCBF2_9CE4_8422_2325_u64, 0x9E37_79B9_7F4A_7C15];
        for byte in bytes {
            for half in &mut state {
                *half =
                    (*half ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(7);
            }
        }
        let mut tag = [0; 16];
        tag[..8].copy_from_slice(&state[0].to_be_bytes());
        tag[8..].copy_from_slice(&state[1].to_be_bytes());
        tag
    }

    fn verify(&self, bytes: &[u8], tag: &[u8; 16]) -> bool {
        self.tag(bytes) == *tag
    }
}
