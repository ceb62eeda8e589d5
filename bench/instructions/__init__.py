"""What counts instructions: a plugin of the emulator, and what is counted on the emulated device."""
