/* Preloaded into a PVM program, keeps it from asking for another route between tasks than the
 * default one, through the daemons. */

int pvm_setopt(int what, int value)
{
	(void)what;
	(void)value;
	return 0;
}
