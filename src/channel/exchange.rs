//! The exchange: an `Offer` and an `Accept` inside the tunnel, and the keys that follow from them.
//!
//! ```text
//! offerer                                              answerer
//!   X25519 e, ML-KEM (dk, ek)
//!   Offer(number, receiver, suites, E, ek)  ────────▶  X25519 f; (ct, k1) = encapsulate(ek); k2 = f·E
//!   k1 = decapsulate(dk, ct); k2 = e·F     ◀────────  Accept(number, receiver, suite, F, ct)
//!   both: transcript = SHA-256(everything above, who they are, which starts of theirs)
//!         prk = HKDF-Extract(salt: transcript, k1 ‖ k2)
//!         key of a direction and stripe = HKDF-Expand(prk, label ‖ direction ‖ stripe)
//!   seals under the new keys at once       ────────▶  seals under them after opening a message
//! ```
//! The answerer waits because ML-KEM rejects implicitly: a damaged ciphertext gives a wrong key and no error.
//!
//! The tunnel has authenticated both, and the transcript names both static keys, serials and incarnations: an exchange
//! cannot be moved to another pair of nodes, or to another start of the same ones.

use aws_lc_rs::{
    hkdf, kem,
    kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768},
};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::{Suite, Suites};
pub use crate::wire::exchange::{Accept, Offer};
use crate::words::{
    id::{Incarnation, NetworkId, Serial},
    key::{TransportKey, TransportSecret},
};

/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203).
pub const ENCAPSULATION_KEY: usize = 1184;

/// Bytes of an ML-KEM-768 ciphertext.
pub const CIPHERTEXT: usize = 1088;

/// First thing in the transcript: which protocol, which version.
const LABEL: &[u8] = b"clusternet/1 channel";

/// One party to an exchange, as the tunnel's introductions have told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// Of its certificate.
    pub serial: Serial,
    /// Static key of the tunnel.
    pub key: TransportKey,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// What it can use, from its introduction, never from an announcement.
    pub suites: Suites,
}

/// Who agrees: the offerer first.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Which network.
    pub network: NetworkId,
    /// Who offered.
    pub offerer: Party,
    /// Who answers.
    pub answerer: Party,
}

/// Why an exchange came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// A key or ciphertext of the wrong length, or not a key at all, or an index with something where the stripe goes.
    #[error("malformed channel exchange")]
    Malformed,
    /// The other side's X25519 share is of low order.
    #[error("the other side's X25519 share gives no secret")]
    LowOrder,
    /// No suite that both have, or one that was not on offer.
    #[error("no suite in common")]
    Suite,
    /// It answers another offer.
    #[error("it answers another offer")]
    Number,
    /// The library failed; not the peer's doing.
    #[error("the cryptographic library failed")]
    Library,
}

/// The offerer's side, until the answer comes. Erased when dropped.
pub struct Offered {
    offer: Offer,
    x25519: StaticSecret,
    mlkem: DecapsulationKey<kem::AlgorithmId>,
}

impl std::fmt::Debug for Offered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Offered({})", self.offer.number)
    }
}

/// What both sides have when an exchange is done.
pub struct Agreed {
    /// Which AEAD.
    pub suite: Suite,
    /// By which index the other side wants to be sent data.
    pub send_index: u32,
    /// By which index we are sent data.
    pub receive_index: u32,
    is_offerer: bool,
    prk: hkdf::Prk,
}

impl std::fmt::Debug for Agreed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Agreed({:?}, {:08x})", self.suite, self.receive_index)
    }
}

/// The two keys of one stripe, from our side. Zeroized when dropped.
#[derive(Debug)]
pub struct Keys {
    /// For what we send.
    pub seal: Zeroizing<[u8; 32]>,
    /// For what we receive.
    pub open: Zeroizing<[u8; 32]>,
}

impl Agreed {
    /// Keys of a stripe (0 is the only one where one port pair serves).
    pub fn keys(&self, stripe: u8) -> Keys {
        // Direction 0 is what the offerer sends.
        let (seal, open) = if self.is_offerer { (0, 1) } else { (1, 0) };
        Keys { seal: self.expand(seal, stripe), open: self.expand(open, stripe) }
    }

    fn expand(&self, direction: u8, stripe: u8) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        let place = [direction, stripe];
        let info: [&[u8]; 2] = [b"clusternet/1 channel key", &place];
        self.prk
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut *key))
            .expect("HKDF-SHA256 expands to 32 bytes");
        key
    }
}

/// Begins an exchange: the offer to send and what to keep for the answer.
///
/// # Errors
/// [`ExchangeError::Library`].
pub fn offer(number: u64, receiver: u32) -> Result<Offered, ExchangeError> {
    let x25519 = StaticSecret::from(*TransportSecret::generate().expose());
    let mlkem = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| ExchangeError::Library)?;
    let public = mlkem.encapsulation_key().and_then(|key| Ok(key.key_bytes()?.as_ref().to_vec()));
    let offer = Offer {
        number,
        receiver,
        x25519: PublicKey::from(&x25519).to_bytes(),
        mlkem: public.map_err(|_| ExchangeError::Library)?,
    };
    Ok(Offered { offer, x25519, mlkem })
}

/// Answers an offer.
///
/// # Errors
/// [`ExchangeError`]: the offer is dropped.
pub fn accept(
    offer: &Offer,
    receiver: u32,
    context: &Context,
) -> Result<(Accept, Agreed), ExchangeError> {
    let suite =
        context.offerer.suites.choose(context.answerer.suites).ok_or(ExchangeError::Suite)?;
    if offer.mlkem.len() != ENCAPSULATION_KEY || !is_index(offer.receiver) {
        return Err(ExchangeError::Malformed);
    }
    let their_key =
        EncapsulationKey::new(&ML_KEM_768, &offer.mlkem).map_err(|_| ExchangeError::Malformed)?;
    let (ciphertext, k1) = their_key.encapsulate().map_err(|_| ExchangeError::Malformed)?;
    let secret = StaticSecret::from(*TransportSecret::generate().expose());
    let accept = Accept {
        number: offer.number,
        receiver,
        suite,
        x25519: PublicKey::from(&secret).to_bytes(),
        mlkem: ciphertext.as_ref().to_vec(),
    };
    let prk = derive(offer, &accept, context, k1.as_ref(), &secret, &offer.x25519)?;
    let agreed = Agreed {
        suite,
        send_index: offer.receiver,
        receive_index: receiver,
        is_offerer: false,
        prk,
    };
    Ok((accept, agreed))
}

impl Offered {
    /// What to send, and to send again until the answer comes.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The answer has come.
    ///
    /// # Errors
    /// [`ExchangeError`]: the answer is dropped. A damaged ciphertext is no error here: the keys then do not fit, which
    /// shows when the first message does not open.
    pub fn complete(&self, accept: &Accept, context: &Context) -> Result<Agreed, ExchangeError> {
        if accept.number != self.offer.number {
            return Err(ExchangeError::Number);
        }
        if context.offerer.suites.choose(context.answerer.suites) != Some(accept.suite) {
            return Err(ExchangeError::Suite);
        }
        if accept.mlkem.len() != CIPHERTEXT || !is_index(accept.receiver) {
            return Err(ExchangeError::Malformed);
        }
        let k1 = self
            .mlkem
            .decapsulate(Ciphertext::from(accept.mlkem.as_slice()))
            .map_err(|_| ExchangeError::Malformed)?;
        let prk = derive(&self.offer, accept, context, k1.as_ref(), &self.x25519, &accept.x25519)?;
        Ok(Agreed {
            suite: accept.suite,
            send_index: accept.receiver,
            receive_index: self.offer.receiver,
            is_offerer: true,
            prk,
        })
    }
}

/// The lower 8 bits of an index in an exchange are the stripes' place.
fn is_index(receiver: u32) -> bool {
    receiver & 0xff == 0
}

fn derive(
    offer: &Offer,
    accept: &Accept,
    context: &Context,
    k1: &[u8],
    ours: &StaticSecret,
    theirs: &[u8; 32],
) -> Result<hkdf::Prk, ExchangeError> {
    let k2 = ours.diffie_hellman(&PublicKey::from(*theirs));
    if !k2.was_contributory() {
        return Err(ExchangeError::LowOrder);
    }
    let mut secret = Zeroizing::new(Vec::with_capacity(k1.len() + 32));
    secret.extend_from_slice(k1);
    secret.extend_from_slice(k2.as_bytes());
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &transcript(offer, accept, context));
    Ok(salt.extract(&secret))
}

/// SHA-256 over everything both have said and are. Fixed lengths throughout, so that no two exchanges read the same.
fn transcript(offer: &Offer, accept: &Accept, context: &Context) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(LABEL);
    hash.update(context.network.0);
    for party in [&context.offerer, &context.answerer] {
        hash.update(party.serial.0.to_le_bytes());
        hash.update(party.key.0);
        hash.update(party.incarnation.0.to_le_bytes());
        hash.update([party.suites.0]);
    }
    hash.update(offer.number.to_le_bytes());
    hash.update(offer.receiver.to_le_bytes());
    hash.update(accept.receiver.to_le_bytes());
    hash.update([accept.suite as u8]);
    hash.update(offer.x25519);
    hash.update(accept.x25519);
    hash.update(&offer.mlkem);
    hash.update(&accept.mlkem);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        let party = |n: u8| Party {
            serial: Serial(n.into()),
            key: TransportKey([n; 32]),
            incarnation: Incarnation(u64::from(n) << 40),
            suites: Suites::of(true),
        };
        Context { network: NetworkId([9; 16]), offerer: party(1), answerer: party(2) }
    }

    fn agree(
        offerer_sees: &Context,
        answerer_sees: &Context,
        damage: impl Fn(&mut Accept),
    ) -> Result<bool, ExchangeError> {
        let offered = offer(1, 0x1000)?;
        let (mut accept, theirs) = accept(offered.offer(), 0x2000, answerer_sees)?;
        damage(&mut accept);
        let ours = offered.complete(&accept, offerer_sees)?;
        assert_eq!((ours.send_index, ours.receive_index), (accept.receiver, 0x1000));
        let (a, b) = (ours.keys(0), theirs.keys(0));
        Ok(a.seal == b.open && a.open == b.seal)
    }

    #[test]
    fn both_sides_have_the_same_keys() {
        assert_eq!(agree(&context(), &context(), |_| ()), Ok(true));
    }

    #[test]
    fn directions_and_stripes_have_keys_of_their_own() {
        let offered = offer(1, 0x100).expect("a library that works");
        let (_, agreed) = accept(offered.offer(), 0x200, &context()).expect("a good offer");
        let keys: Vec<[u8; 32]> = (0..4)
            .flat_map(|stripe| [*agreed.keys(stripe).seal, *agreed.keys(stripe).open])
            .collect();
        for (n, key) in keys.iter().enumerate() {
            assert!(!keys[n + 1..].contains(key));
        }
    }

    #[test]
    fn whatever_the_two_see_differently_gives_different_keys() {
        let changes: [fn(&mut Context); 6] = [
            |c| c.network.0[0] ^= 1,
            |c| c.offerer.serial.0 += 1,
            |c| c.answerer.key.0[0] ^= 1,
            |c| c.offerer.incarnation.0 += 1,
            |c| c.answerer.incarnation.0 += 1,
            |c| c.offerer.suites.0 |= 0x80,
        ];
        for change in changes {
            let mut other = context();
            change(&mut other);
            assert_eq!(agree(&context(), &other, |_| ()), Ok(false));
        }
    }

    #[test]
    fn a_damaged_answer_gives_different_keys_or_an_error() {
        let same = context();
        assert_eq!(agree(&same, &same, |a| a.mlkem[7] ^= 1), Ok(false), "implicit rejection");
        assert_eq!(agree(&same, &same, |a| a.x25519[7] ^= 1), Ok(false));
        assert_eq!(agree(&same, &same, |a| a.receiver ^= 0x100), Ok(false));
        assert_eq!(agree(&same, &same, |a| a.receiver ^= 1), Err(ExchangeError::Malformed));
        assert_eq!(agree(&same, &same, |a| a.x25519 = [0; 32]), Err(ExchangeError::LowOrder));
        let short = agree(&same, &same, |a| {
            a.mlkem.pop();
        });
        assert_eq!(short, Err(ExchangeError::Malformed));
        assert_eq!(agree(&same, &same, |a| a.number += 1), Err(ExchangeError::Number));
    }

    #[test]
    fn a_suite_that_would_be_weaker_than_agreed_is_refused() {
        let same = context();
        let downgraded = agree(&same, &same, |a| a.suite = Suite::ChaCha20Poly1305);
        assert_eq!(downgraded, Err(ExchangeError::Suite));
    }

    #[test]
    fn an_offer_that_is_no_key_is_refused() {
        let good = offer(1, 0x100).expect("a library that works").offer().clone();
        let low_order = Offer { x25519: [0; 32], ..good.clone() };
        assert_eq!(accept(&low_order, 0x200, &context()).err(), Some(ExchangeError::LowOrder));
        // FIPS 203's modulus check: coefficients of 4095 are no elements of the field.
        let mut no_key = good.clone();
        no_key.mlkem.fill(0xff);
        assert_eq!(accept(&no_key, 0x200, &context()).err(), Some(ExchangeError::Malformed));
        let short = Offer { mlkem: vec![0; 7], ..good };
        assert_eq!(accept(&short, 0x200, &context()).err(), Some(ExchangeError::Malformed));
    }

    /// `tests/vectors/channel.json`, which `channel.py` beside it has made and checks.
    mod vectors {
        use serde::Deserialize;

        use super::*;
        use crate::{
            channel::{keypair::Keypairs, message},
            wire::record::Record,
        };

        #[derive(Deserialize)]
        struct Vector {
            label: String,
            context: VectorContext,
            x25519_secrets: [String; 2],
            decapsulation_key: String,
            offer: String,
            accept: String,
            transcript: String,
            /// Of each stripe: the offerer's, the answerer's.
            keys: Vec<[String; 2]>,
            messages: Vec<Message>,
        }

        #[derive(Deserialize)]
        struct VectorContext {
            network: String,
            offerer: VectorParty,
            answerer: VectorParty,
        }

        #[derive(Deserialize)]
        struct VectorParty {
            serial: u64,
            key: String,
            incarnation: u64,
            suites: u8,
        }

        #[derive(Deserialize)]
        struct Message {
            from: usize,
            stripe: u8,
            counter: u64,
            text: String,
            datagram: String,
        }

        fn bytes(hex: &str) -> Vec<u8> {
            let digit = |place| u8::from_str_radix(&hex[place..place + 2], 16).expect("hex");
            (0..hex.len()).step_by(2).map(digit).collect()
        }

        fn array<const N: usize>(hex: &str) -> [u8; N] {
            bytes(hex).try_into().expect("of this length")
        }

        impl VectorParty {
            fn party(&self) -> Party {
                Party {
                    serial: Serial(self.serial),
                    key: TransportKey(array(&self.key)),
                    incarnation: Incarnation(self.incarnation),
                    suites: Suites(self.suites),
                }
            }
        }

        #[test]
        fn the_test_vectors_are_met() {
            let text = include_str!("../../tests/vectors/channel.json");
            let vectors: Vec<Vector> = serde_json::from_str(text).expect("vectors");
            assert_eq!(vectors.len(), 2);
            vectors.iter().for_each(check);
        }

        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        fn check(vector: &Vector) {
            let label = &vector.label;
            let context = Context {
                network: NetworkId(array(&vector.context.network)),
                offerer: vector.context.offerer.party(),
                answerer: vector.context.answerer.party(),
            };
            let records = [&vector.offer, &vector.accept].map(|record| bytes(record));
            let (Ok(Record::Offer(offer)), Ok(Record::Accept(accept))) =
                (Record::decode(&records[0]), Record::decode(&records[1]))
            else {
                panic!("{label}: an offer and an answer");
            };
            assert_eq!(Record::Offer(offer.clone()).encode(), records[0]);
            assert_eq!(Record::Accept(accept.clone()).encode(), records[1]);
            assert_eq!(transcript(&offer, &accept, &context), array(&vector.transcript), "{label}");
            let [ours, theirs] =
                [0, 1].map(|side| StaticSecret::from(array(&vector.x25519_secrets[side])));
            let mlkem = DecapsulationKey::new(&ML_KEM_768, &bytes(&vector.decapsulation_key));
            let mlkem = mlkem.expect("a key");
            let k1 = mlkem.decapsulate(Ciphertext::from(accept.mlkem.as_slice())).expect("fits");
            let offered = Offered { offer: (*offer).clone(), x25519: ours, mlkem };
            let offerer = offered.complete(&accept, &context).expect("it fits");
            let prk = derive(&offer, &accept, &context, k1.as_ref(), &theirs, &offer.x25519);
            let answerer = Agreed {
                suite: accept.suite,
                send_index: offer.receiver,
                receive_index: accept.receiver,
                is_offerer: false,
                prk: prk.expect("a contributory share"),
            };
            for (stripe, [from_offerer, from_answerer]) in (0..).zip(&vector.keys) {
                for (side, seal, open) in [
                    (&offerer, from_offerer, from_answerer),
                    (&answerer, from_answerer, from_offerer),
                ] {
                    let keys = side.keys(stripe);
                    assert_eq!(*keys.seal, array(seal), "{label} {stripe}");
                    assert_eq!(*keys.open, array(open), "{label} {stripe}");
                }
            }
            let now = std::time::Instant::now();
            let sides = [offerer, answerer].map(|agreed| Keypairs::new(&agreed, 16, now));
            for Message { from, stripe, counter, text, datagram } in &vector.messages {
                let keypair = |side: usize| sides[side].stripe(*stripe).expect("one of 16");
                let (text, datagram) = (bytes(text), bytes(datagram));
                assert_eq!(message::seal(keypair(*from), *counter, &[&text]), datagram, "{label}");
                let (head, sealed) = datagram.split_at(crate::wire::channel::HEADER);
                let mut sealed = sealed.to_vec();
                let opened = keypair(1 - from).open(*counter, head, &mut sealed);
                assert_eq!(opened.map(|opened| opened.to_vec()), Ok(text), "{label}");
            }
        }
    }
}
