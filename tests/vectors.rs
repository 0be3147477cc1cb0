//! The data channel against a second implementation, written from the description alone: `tests/vectors/channel.py`, with the
//! cryptography of Python's `cryptography`. It checks the test vectors (which a unit test beside the exchange meets), and
//! then is one side of exchanges with this implementation on the other.
//!
//! The Python module comes from PyPI into a virtual environment below `target`, once; where that cannot be the test says so.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use clusternet::{
    channel::{
        Suite, Suites,
        exchange::{self, Agreed, Context, Party},
        keypair::Keypairs,
        message::{self, MAX_SLICE, Text},
    },
    wire::{
        channel::{HEADER, Place},
        record::Record,
        superpacket::Kind,
    },
    words::{
        id::{Incarnation, NetworkId, Serial},
        key::TransportKey,
    },
};
use serde_json::{Value, json};

/// The one that was written against. Older ones lack ML-KEM.
const CRYPTOGRAPHY: &str = "50.0.2";

/// A Python with that module, or why there is none.
fn python() -> Result<PathBuf, String> {
    let environment =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cryptography-{CRYPTOGRAPHY}"));
    let python = environment.join("bin/python");
    let is_ready = |python: &Path| {
        let check =
            format!("import cryptography; assert cryptography.__version__ == '{CRYPTOGRAPHY}'");
        let output = Command::new(python).args(["-c", &check]).output();
        output.is_ok_and(|output| output.status.success())
    };
    if is_ready(&python) {
        return Ok(python);
    }
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .output()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let told = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            Ok(())
        } else {
            Err(told.lines().last().unwrap_or("no reason given").to_owned())
        }
    };
    let place = environment.to_string_lossy();
    run(Path::new("python3"), &["-m", "venv", "--clear", &place])?;
    let module = format!("cryptography=={CRYPTOGRAPHY}");
    run(
        &python,
        &["-m", "pip", "install", "--quiet", "--timeout", "20", "--retries", "1", &module],
    )?;
    if is_ready(&python) { Ok(python) } else { Err("the module does not load".to_owned()) }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

/// The other implementation, as one side of exchanges.
struct Second {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Second {
    fn start(python: &Path) -> Self {
        let mut child = Command::new(python)
            .arg(script("channel.py"))
            .arg("play")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it was started a moment ago");
        let ask = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, ask, answers }
    }

    fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.ask, "{question}").expect("it listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no answer to {question}"))
    }

    fn record(&mut self, question: &Value) -> (Value, Record) {
        let answer = self.ask(question);
        let record = Record::decode(&bytes(&answer["record"])).expect("a control record");
        (answer, record)
    }

    /// Whether both have the same keys, and open what the other seals.
    fn check(&mut self, agreed: &Agreed, keys: &Value, is_offerer: bool) {
        for stripe in 0..16_u8 {
            let [from_offerer, from_answerer] =
                [0, 1].map(|sender| bytes(&keys[usize::from(stripe)][sender]));
            let (seal, open) = if is_offerer {
                (from_offerer, from_answerer)
            } else {
                (from_answerer, from_offerer)
            };
            let ours = agreed.keys(stripe);
            assert_eq!((ours.seal.to_vec(), ours.open.to_vec()), (seal, open), "stripe {stripe}");
        }
        let now = now();
        let keypairs = Keypairs::new(agreed, 16, now);
        for (stripe, kind, len) in
            [(0, Kind::Whole, 20), (3, Kind::Unfinished, 1404), (15, Kind::Tcp(1340), 60_000)]
        {
            let keypair = keypairs.stripe(stripe).expect("one of 16");
            let packet: Vec<u8> = (0..=255).cycle().take(len).collect();
            let mut datagrams = Vec::new();
            message::seal_packet(keypair, &packet, kind, MAX_SLICE, now, |d| datagrams.push(d))
                .expect("young keys");
            let mut whole = Vec::new();
            for (number, datagram) in datagrams.iter().enumerate() {
                let opened =
                    self.ask(&json!({"do": "open", "stripe": stripe, "datagram": hex(datagram)}));
                assert_eq!(opened["receiver"], json!(keypair.send_index()));
                assert_eq!(opened["counter"], json!(number));
                let text = bytes(&opened["text"]);
                let (place, slice) = Place::parse(&text).expect("a place");
                assert_eq!(
                    (usize::from(place.number), usize::from(place.count)),
                    (number, datagrams.len())
                );
                assert_eq!(place.kind, kind);
                whole.extend_from_slice(slice);
            }
            assert_eq!(whole, packet);
            // And the other way, not in order.
            for counter in [7_u64, 5, 4_294_967_295] {
                let place = Place { number: 1, count: 3, kind };
                let text = [place.to_bytes().as_slice(), b"from there"].concat();
                let sealed = self.ask(&json!({
                    "do": "seal", "stripe": stripe, "counter": counter, "text": hex(&text),
                }));
                let mut datagram = bytes(&sealed["datagram"]);
                let (header, text) = message::open(keypair, &mut datagram, now).expect("it opens");
                assert_eq!(header.receiver, agreed.receive_index | u32::from(stripe));
                assert_eq!(text, Text::Slice(place, b"from there"));
            }
            let keepalive = self.ask(&json!({
                "do": "seal", "stripe": stripe, "counter": 4_294_967_294_u64, "text": "",
            }));
            let mut datagram = bytes(&keepalive["datagram"]);
            assert_eq!(datagram.len(), HEADER + 16);
            let opened = message::open(keypair, &mut datagram, now);
            assert_eq!(opened.map(|(_, text)| text == Text::Empty), Ok(true));
        }
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[allow(clippy::disallowed_methods, reason = "any instant will do")]
fn now() -> Instant {
    Instant::now()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().expect("hexadecimal text");
    let digit = |place| u8::from_str_radix(&hex[place..place + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn context(suites: Suites) -> (Context, Value) {
    let party = |n: u8, suites| Party {
        serial: Serial(u64::from(n) * 1000),
        key: TransportKey([n; 32]),
        incarnation: Incarnation(0xfedc_ba98_7654_3200 | u64::from(n)),
        suites,
    };
    let (offerer, answerer) = (party(7, Suites::of(true)), party(4, suites));
    let network = NetworkId([0x5a; 16]);
    let told = |party: &Party| {
        json!({
            "serial": party.serial.0, "key": hex(&party.key.0),
            "incarnation": party.incarnation.0, "suites": party.suites.0,
        })
    };
    let value = json!({
        "network": hex(&network.0), "offerer": told(&offerer), "answerer": told(&answerer),
    });
    (Context { network, offerer, answerer }, value)
}

#[test]
fn a_second_implementation_agrees() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => {
            println!("skipped: no Python with cryptography {CRYPTOGRAPHY}: {why}");
            return;
        }
    };
    let checked = Command::new(&python)
        .arg(script("channel.py"))
        .arg("check")
        .arg(script("channel.json"))
        .output()
        .expect("it was started a moment ago");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert_eq!(String::from_utf8_lossy(&checked.stdout).trim(), "2 vectors");

    let mut second = Second::start(&python);
    for suites in [Suites::of(true), Suites::only(Suite::ChaCha20Poly1305)] {
        let (context, told) = context(suites);

        // It offers, we answer.
        let (_, record) =
            second.record(&json!({"do": "offer", "number": 300, "receiver": 0x00ab_cd00}));
        let Record::Offer(offer) = record else { panic!("{record:?}") };
        let (accept, agreed) =
            exchange::accept(&offer, 0x1234_5600, &context).expect("a good offer");
        let accept = Record::Accept(Box::new(accept)).encode();
        let done = second.ask(&json!({"do": "complete", "context": told, "record": hex(&accept)}));
        second.check(&agreed, &done["keys"], false);

        // We offer, it answers.
        let offered = exchange::offer(u64::MAX, 0xffff_ff00).expect("the library works");
        let offer = Record::Offer(Box::new(offered.offer().clone())).encode();
        let (answer, record) = second.record(&json!({
            "do": "answer", "context": told, "record": hex(&offer), "receiver": 0x0000_0100,
        }));
        let Record::Accept(accept) = record else { panic!("{record:?}") };
        let agreed = offered.complete(&accept, &context).expect("a good answer");
        second.check(&agreed, &answer["keys"], true);
    }
}
