"""`make fuzz`: everything that decodes what others wrote is fed with what nobody would write."""
