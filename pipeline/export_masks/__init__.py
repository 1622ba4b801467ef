"""Export of an output's masks to the formats of other tools (docs/exports.md). Each format has its own module here."""
