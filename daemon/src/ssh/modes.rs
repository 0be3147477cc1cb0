//! Terminal modes as a client encodes them (RFC 4254 §8), applied to a terminal.

use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SpecialCharacterIndices as Special, Termios,
};
use russh::Pty;

const SPECIAL: [(Pty, Special); 15] = [
    (Pty::VINTR, Special::VINTR),
    (Pty::VQUIT, Special::VQUIT),
    (Pty::VERASE, Special::VERASE),
    (Pty::VKILL, Special::VKILL),
    (Pty::VEOF, Special::VEOF),
    (Pty::VEOL, Special::VEOL),
    (Pty::VEOL2, Special::VEOL2),
    (Pty::VSTART, Special::VSTART),
    (Pty::VSTOP, Special::VSTOP),
    (Pty::VSUSP, Special::VSUSP),
    (Pty::VREPRINT, Special::VREPRINT),
    (Pty::VWERASE, Special::VWERASE),
    (Pty::VLNEXT, Special::VLNEXT),
    (Pty::VSWTCH, Special::VSWTC),
    (Pty::VDISCARD, Special::VDISCARD),
];

const INPUT: [(Pty, InputFlags); 12] = [
    (Pty::IGNPAR, InputFlags::IGNPAR),
    (Pty::PARMRK, InputFlags::PARMRK),
    (Pty::INPCK, InputFlags::INPCK),
    (Pty::ISTRIP, InputFlags::ISTRIP),
    (Pty::INLCR, InputFlags::INLCR),
    (Pty::IGNCR, InputFlags::IGNCR),
    (Pty::ICRNL, InputFlags::ICRNL),
    (Pty::IXON, InputFlags::IXON),
    (Pty::IXANY, InputFlags::IXANY),
    (Pty::IXOFF, InputFlags::IXOFF),
    (Pty::IMAXBEL, InputFlags::IMAXBEL),
    (Pty::IUTF8, InputFlags::IUTF8),
];

const LOCAL: [(Pty, LocalFlags); 12] = [
    (Pty::ISIG, LocalFlags::ISIG),
    (Pty::ICANON, LocalFlags::ICANON),
    (Pty::ECHO, LocalFlags::ECHO),
    (Pty::ECHOE, LocalFlags::ECHOE),
    (Pty::ECHOK, LocalFlags::ECHOK),
    (Pty::ECHONL, LocalFlags::ECHONL),
    (Pty::NOFLSH, LocalFlags::NOFLSH),
    (Pty::TOSTOP, LocalFlags::TOSTOP),
    (Pty::IEXTEN, LocalFlags::IEXTEN),
    (Pty::ECHOCTL, LocalFlags::ECHOCTL),
    (Pty::ECHOKE, LocalFlags::ECHOKE),
    (Pty::PENDIN, LocalFlags::PENDIN),
];

const OUTPUT: [(Pty, OutputFlags); 6] = [
    (Pty::OPOST, OutputFlags::OPOST),
    (Pty::OLCUC, OutputFlags::OLCUC),
    (Pty::ONLCR, OutputFlags::ONLCR),
    (Pty::OCRNL, OutputFlags::OCRNL),
    (Pty::ONOCR, OutputFlags::ONOCR),
    (Pty::ONLRET, OutputFlags::ONLRET),
];

/// Flags, and character sizes, which are values of one field.
const CONTROL: [(Pty, ControlFlags, ControlFlags); 4] = [
    (Pty::PARENB, ControlFlags::PARENB, ControlFlags::PARENB),
    (Pty::PARODD, ControlFlags::PARODD, ControlFlags::PARODD),
    (Pty::CS7, ControlFlags::CSIZE, ControlFlags::CS7),
    (Pty::CS8, ControlFlags::CSIZE, ControlFlags::CS8),
];

/// Sets what `asked` says and leaves the rest. Speeds mean nothing to a pseudo-terminal.
pub(super) fn apply(modes: &mut Termios, asked: &[(Pty, u32)]) {
    for &(mode, value) in asked {
        if let Some((_, place)) = SPECIAL.iter().find(|(known, _)| *known == mode)
            && let Some(place) = modes.control_chars.get_mut(*place as usize)
        {
            // 255 stands for "none", which POSIX writes as 0 here.
            *place = u8::try_from(value).ok().filter(|value| *value != 255).unwrap_or(0);
        }
        let on = value != 0;
        if let Some((_, flag)) = INPUT.iter().find(|(known, _)| *known == mode) {
            modes.input_flags.set(*flag, on);
        }
        if let Some((_, flag)) = LOCAL.iter().find(|(known, _)| *known == mode) {
            modes.local_flags.set(*flag, on);
        }
        if let Some((_, flag)) = OUTPUT.iter().find(|(known, _)| *known == mode) {
            modes.output_flags.set(*flag, on);
        }
        if let Some((_, field, flag)) = CONTROL.iter().find(|(known, ..)| *known == mode) {
            if on {
                modes.control_flags = (modes.control_flags - *field) | *flag;
            } else if field == flag {
                modes.control_flags -= *flag;
            }
        }
    }
}
