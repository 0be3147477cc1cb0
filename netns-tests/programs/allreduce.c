/*
 * Sums a vector of each length from one number to a million over all ranks, by MPI_Allreduce, and
 * compares every element.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	int rank, size, wrong = 0, all = 0;
	enum { MOST = 1000000 };
	double *own = malloc(MOST * sizeof *own), *sum = malloc(MOST * sizeof *sum);

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	for (int length = 1; length <= MOST; length *= 10) {
		for (int i = 0; i < length; i++) {
			own[i] = (double)i * (rank + 1);
			sum[i] = -1;
		}
		MPI_Allreduce(own, sum, length, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
		for (int i = 0; i < length; i++)
			wrong += sum[i] != (double)i * size * (size + 1) / 2;
	}
	MPI_Allreduce(&wrong, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
	if (rank == 0)
		printf(all ? "allreduce is wrong\n" : "allreduce of %d ranks is right\n", size);
	MPI_Finalize();
	return all != 0;
}
