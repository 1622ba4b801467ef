"""An output's masks in the formats of other programs; docs/exports.md. Each format has a file here."""
